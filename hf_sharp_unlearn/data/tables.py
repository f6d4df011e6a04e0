"""Tables of samples that the command line names, and which of their rows are to be forgotten.

data     a `.parquet`, `.csv`, `.json` or `.jsonl` file, a folder that `Dataset.save_to_disk` wrote, an image folder,
         or a Hub id; ":NAME" at the end names the split, where there are several
forget   a column of true and false, a file or list of row numbers, or conditions on columns
"""

import glob
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from .caches import cache_folder
from .conditions import flags, holds
from .faults import fault_in, reason, unread
from .hub_id import hub_id
from .row_lists import row_numbers
from .spellings import check_spellings, is_csv

FILES = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def read_table(spec: str) -> Any:
    """The `datasets.Dataset` that a specification names. Raises ValueError where there is none."""
    import datasets

    path, _, split = spec.rpartition(":")
    if os.path.exists(spec) or not path:
        path, split = spec, ""
    ending, own = os.path.splitext(path)[1], {"cache_dir": cache_folder()}
    try:
        if fault := unread(path):
            raise ValueError(fault)
        if os.path.isfile(path) and ending in FILES:
            found = datasets.load_dataset(FILES[ending], data_files=glob.escape(path), split="train", **own)
        elif os.path.isfile(path):
            raise ValueError(f"files must end in one of {sorted(FILES)}")
        elif any(os.path.isfile(os.path.join(path, name)) for name in ("dataset_info.json", "dataset_dict.json")):
            found = datasets.load_from_disk(path)
        elif _holds_images(path):
            found = datasets.load_dataset("imagefolder", data_dir=glob.escape(path), drop_labels=False, **own)
        else:
            found = datasets.load_dataset(path)
    except Exception as error:
        fault, said = fault_in(path), reason(error)
        why = said if fault is None else f"{fault}. Correct the file." + f" ({said})" * (fault != said)
        raise ValueError(f"No data set could be loaded from {spec!r}: {why}") from error
    if isinstance(found, datasets.DatasetDict):
        if split and split not in found or not split and len(found) > 1:
            raise ValueError(f"{spec!r}: name one of the splits {list(found)}, as {path}:NAME.")
        found = found[split or next(iter(found))]
    elif split:
        raise ValueError(f"{spec!r}: {path} has no splits. Leave :{split} out.")
    if not len(found):
        raise ValueError(f"{spec!r} is empty: it has the columns {found.column_names}, and no row.")
    return found


def is_hub_id(spec: str) -> str | None:
    """The Hub's id of a data set named so, without its split; None for what lies on this machine."""
    path = spec.rpartition(":")[0] or spec
    return hub_id(path) if "/" in path and not os.path.exists(spec) else None


def fingerprint(spec: str, data: Any) -> str:
    """Changes when the data does: the hash of a file, or what `datasets` knows of anything else."""
    if not os.path.isfile(spec):
        return str(data._fingerprint)
    with open(spec, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def forget_rows(
    data: Any,
    *,
    column: str | None = None,
    indices: Sequence[str] = (),
    conditions: Sequence[str] = (),
    spec: str | None = None,
) -> np.ndarray:
    """Rows of the forget set, in order.

    column: of true and false (or 1 and 0); true is forgotten. indices: row numbers, or one file with them, see
    `row_lists`. conditions: "COLUMN SIGN VALUE" with == != < <= > >= or in (VALUE then is a list with commas), see
    `conditions`; rows for which all hold. A class may be named by its name. spec: what `read_table` made the data of;
    of a CSV file it is looked at how numbers were written, see `spellings`.

    Raises ValueError unless exactly one of the three is given and it names some rows, but not all.
    """
    given = [name for name, value in (("column", column), ("indices", indices), ("filter", conditions)) if value]
    if len(given) != 1:
        raise ValueError(
            f"The forget set is named by {' and '.join(given) or 'nothing'}: give exactly one of --forget-column, "
            "--forget-indices and --forget-filter, or --forget and --retain instead of --train."
        )
    if column:
        rows = np.flatnonzero(flags(data, column))
    elif indices:
        rows = row_numbers(list(indices), len(data))
    else:
        rows = np.flatnonzero(np.logical_and.reduce([holds(data, condition) for condition in conditions]))
        for condition in conditions if is_csv(spec) else ():
            check_spellings(data, spec, condition)
    if not 0 < len(rows) < len(data):
        raise ValueError(
            f"The forget set has {len(rows)} of {len(data)} rows: it must hold some, and leave some to retain."
        )
    return rows


def _holds_images(path: str) -> bool:
    """A folder of folders of images: one per class."""
    if not os.path.isdir(path):
        return False
    folders = [entry.path for entry in os.scandir(path) if entry.is_dir()]
    return any(os.path.splitext(name)[1].lower() in PICTURES for folder in folders for name in os.listdir(folder))
