"""Where copies of data sets lie while a command works: in the cache folder of `datasets`, never beside the user's data.

They hold the samples that are to be forgotten. Each output folder has a cache of its own: a run that was killed finds
it again, and one that ended removes it.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable
from typing import Any

_NAME = "sharp_unlearn"
_of_the_command: list[str] = []


def use_cache_of(output_dir: str) -> str:
    """From now on, copies go into the cache of this output folder. Returns its path."""
    name = hashlib.sha256(os.path.realpath(output_dir).encode()).hexdigest()[:16]
    _of_the_command.append(os.path.join(_root(), name))
    return _of_the_command[-1]


def leave_cache(path: str, remove: bool) -> None:
    """As it was before `use_cache_of` gave this path."""
    _of_the_command.remove(path)
    if remove:
        shutil.rmtree(path, ignore_errors=True)


def cache_folder() -> str | None:
    """The cache of the command that works, for `load_dataset(cache_dir=...)`; None, the usual place, outside of one."""
    return _of_the_command[-1] if _of_the_command else None


def mapped(data: Any, function: Callable, **options: Any) -> Any:
    """`data.map(function, **options)`. `datasets` would write its result beside what `save_to_disk` has made."""
    from datasets.fingerprint import Hasher

    try:
        name = Hasher.hash((data._fingerprint, function, sorted(options.items(), key=lambda option: option[0])))
    except Exception:  # what cannot be hashed is made anew each time
        name = uuid.uuid4().hex
    folder = cache_folder() or _root()
    os.makedirs(folder, exist_ok=True)
    return data.map(function, cache_file_name=os.path.join(folder, f"cache-{name}.arrow"), **options)


def _root() -> str:
    import datasets

    return os.path.join(datasets.config.HF_DATASETS_CACHE, _NAME)
