"""Tables of samples that the command line names, and which of their rows are to be forgotten.

data     a `.parquet`, `.csv`, `.json` or `.jsonl` file, a folder that `Dataset.save_to_disk` wrote, an image folder,
         or a Hub id; ":NAME" at the end names the split, where there are several
forget   a column of true and false, a file or list of row numbers, or conditions on columns
"""

import datetime
import glob
import hashlib
import json
import operator
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .caches import cache_folder
from .hub_id import hub_id

FILES = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq, "!=": operator.ne, "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt
}  # fmt: skip
_CONDITION = re.compile(r"\s*(?P<column>.+?)\s*(?P<sign>==|!=|<=|>=|<|>|\bin\b)\s*(?P<value>.+?)\s*$")


def read_table(spec: str) -> Any:
    """The `datasets.Dataset` that a specification names. Raises ValueError where there is none."""
    import datasets

    path, _, split = spec.rpartition(":")
    if os.path.exists(spec) or not path:
        path, split = spec, ""
    ending, own = os.path.splitext(path)[1], {"cache_dir": cache_folder()}
    try:
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
        raise ValueError(f"No data set could be loaded from {spec!r}: {first_line(error)}") from error
    if not isinstance(found, datasets.DatasetDict):
        if split:
            raise ValueError(f"{spec!r}: {path} has no splits. Leave :{split} out.")
        return found
    if split and split not in found or not split and len(found) > 1:
        raise ValueError(f"{spec!r}: name one of the splits {list(found)}, as {path}:NAME.")
    return found[split or next(iter(found))]


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
    data: Any, *, column: str | None = None, indices: Sequence[str] = (), conditions: Sequence[str] = ()
) -> np.ndarray:
    """Rows of the forget set, in order.

    column: of true and false (or 1 and 0); true is forgotten. indices: row numbers, or one file with them: .npy, .json
    (a list) or text (one a line). conditions: "COLUMN SIGN VALUE" with == != < <= > >= or in (VALUE then is a list with
    commas); rows for which all hold. A class may be named by its name.

    Raises ValueError unless exactly one of the three is given and it names some rows, but not all.
    """
    given = [name for name, value in (("column", column), ("indices", indices), ("filter", conditions)) if value]
    if len(given) != 1:
        raise ValueError(
            f"The forget set is named by {' and '.join(given) or 'nothing'}: give exactly one of --forget-column, "
            "--forget-indices and --forget-filter, or --forget and --retain instead of --train."
        )
    if column:
        rows = np.flatnonzero(_flags(data, column))
    elif indices:
        rows = _indices(list(indices), len(data))
    else:
        masks = [_holds(data, condition) for condition in conditions]
        rows = np.flatnonzero(np.logical_and.reduce(masks))
    if not 0 < len(rows) < len(data):
        raise ValueError(
            f"The forget set has {len(rows)} of {len(data)} rows: it must hold some, and leave some to retain."
        )
    return rows


def _flags(data: Any, column: str) -> np.ndarray:
    values = np.asarray(_column(data, column))
    if values.dtype != bool and not (values.dtype.kind in "iuf" and set(np.unique(values)) <= {0, 1}):
        shown = values[:3].tolist() if None not in values.tolist() else "empty cells"
        raise ValueError(
            f"--forget-column {column}: must hold true and false, it holds e.g. {shown}. A condition does it for other "
            f"columns: --forget-filter '{column} == VALUE'."
        )
    return values.astype(bool)


def _indices(given: list[str], total: int) -> np.ndarray:
    name = " ".join(map(str, given))[:80]
    try:
        if len(given) == 1 and os.path.isfile(given[0]):
            rows = _rows_in(given[0])
        else:
            rows = np.array([int(value) for value in given])
    except (TypeError, ValueError):
        raise ValueError(f"--forget-indices {name}: no list of row numbers, and no .npy, .json or text file.") from None
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise ValueError(
            f"--forget-indices {name}: holds {rows.dtype} of shape {rows.shape}, must hold row numbers. "
            "numpy.flatnonzero(mask) makes them of a mask."
        )
    wrong = rows[(rows < 0) | (rows >= total)]
    if len(wrong) or len(np.unique(rows)) < len(rows):
        what = f"{wrong[:5].tolist()} are out of range" if len(wrong) else "rows come more than once"
        raise ValueError(f"--forget-indices: {what}; rows go from 0 to {total - 1}, each once.")
    return np.sort(rows)


def _rows_in(path: str) -> np.ndarray:
    if path.endswith(".npy"):
        return np.load(path)
    with open(path, encoding="utf-8") as file:
        if path.endswith(".json"):
            return np.array(json.load(file))
        return np.array([int(word) for word in file.read().replace(",", " ").split()])


def _holds(data: Any, condition: str) -> np.ndarray:
    """Rows for which a condition holds; it does not where the cell is empty."""
    import datasets

    found = _CONDITION.match(condition)
    if found is None:
        raise ValueError(f"--forget-filter {condition!r}: write COLUMN SIGN VALUE, e.g. 'label == 3' or 'score > 0.9'.")
    column, sign, text = found["column"], found["sign"], found["value"].strip("\"'")
    cells = _column(data, column)
    known = np.array([cell is not None for cell in cells])
    values = np.asarray([cell for cell in cells if cell is not None])
    if values.dtype == object and isinstance(values[0], datetime.date):
        values = values.astype("datetime64[us]")
    names = data.features[column].names if isinstance(data.features[column], datasets.ClassLabel) else []
    words = [word.strip().strip("\"'") for word in text.split(",")] if sign == "in" else [text]
    try:
        wanted = [_like(values, str(names.index(word)) if word in names else word) for word in words]
        # One by one: numpy would turn large whole numbers and fractions into floats to compare them at once.
        held = np.logical_or.reduce([_COMPARE["==" if sign == "in" else sign](values, value) for value in wanted])
    except (TypeError, ValueError, OverflowError):
        raise ValueError(
            f"--forget-filter {condition!r}: {column} holds {values.dtype} (e.g. {values[:3].tolist()}), which cannot "
            f"be compared with {text!r}."
        ) from None
    rows = np.zeros(len(cells), dtype=bool)
    rows[known] = held
    return rows


def _like(values: np.ndarray, word: str) -> Any:
    """The word as what the column holds; whole numbers stay whole, so that long ids are told apart."""
    if values.dtype == bool:
        if word.lower() not in ("true", "false"):
            raise ValueError(word)
        return word.lower() == "true"
    if values.dtype.kind == "M":
        return np.datetime64(word)
    if values.dtype.kind in "iu" and re.fullmatch(r"[+-]?\d+", word):
        return int(word)
    return float(word) if values.dtype.kind in "iuf" else word


def _column(data: Any, column: str) -> list:
    if column not in data.column_names:
        raise ValueError(f"{column!r} is no column of the training set, which has {data.column_names}.")
    return list(data.with_format(None)[column][:])  # this column alone: images are not decoded


def _holds_images(path: str) -> bool:
    """A folder of folders of images: one per class."""
    if not os.path.isdir(path):
        return False
    folders = [entry.path for entry in os.scandir(path) if entry.is_dir()]
    return any(os.path.splitext(name)[1].lower() in PICTURES for folder in folders for name in os.listdir(folder))


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
