"""Training arguments that may be shared: `training_args.bin` without tokens and without paths of this machine."""

import copy
import os
import re
from typing import Any

_SECRET = re.compile(r"(^|_)(token|key|secret|password)$")


def scrubbed(args: Any) -> dict[str, Any]:
    """The attributes of `args` with None for tokens and for paths; an output folder keeps its last part."""
    found = {name: without_paths(value) for name, value in vars(args).items() if not _SECRET.search(name)}
    found |= {name: None for name in vars(args) if _SECRET.search(name)}
    found["output_dir"] = os.path.basename(os.path.normpath(args.output_dir))
    if getattr(args, "run_name", None) == args.output_dir:
        found["run_name"] = found["output_dir"]
    return found


def without_paths(value: Any) -> Any:
    """The same values with None for paths of this machine and for what is named like a secret, at any depth."""
    if isinstance(value, dict):
        return {k: None if _SECRET.search(str(k)) else without_paths(entry) for k, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_paths(entry) for entry in value)
    is_path = (
        isinstance(value, os.PathLike)
        or isinstance(value, str)
        and (os.path.isabs(value) or value.startswith(("~", "./", "../")) or os.sep in value and os.path.exists(value))
    )
    return None if is_path else value


def shareable(args: Any) -> Any:
    """The same arguments, except that a pickle of them is scrubbed and loads as what `args` is."""
    cls = type(args)

    class Shareable(cls):
        def __reduce_ex__(self, protocol):
            return _restored, (cls, scrubbed(self))

    same = copy.copy(args)
    same.__class__ = Shareable
    return same


def _restored(cls: type, attributes: dict[str, Any]) -> Any:
    args = object.__new__(cls)
    args.__dict__.update(attributes)
    return args
