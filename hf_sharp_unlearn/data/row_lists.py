"""Lists of row numbers, as words or in a file: text, .csv, .json, .jsonl, .npy, .npz or .parquet.

A list is one-dimensional. Of a table one column is taken, the only one or the one that is named like a row number; no
table is ever flattened. A mask of true and false as long as the data set names its true rows.
"""

import csv
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from .words import READ_AS_EMPTY, number

FORMS = "text with one row number a line, .csv, .json, .jsonl, .npy, .npz or .parquet"
_ROW_NAME = re.compile("(forget|forgotten)?(rows?|index|indices|indexes|idx|row(numbers?|index|indices|idx))")
_NAME = re.compile(r"[^\W\d][\w .-]*")
_UNNAMED = ("", "Unnamed: 0", "__index_level_0__")  # how pandas writes its index


@dataclass(frozen=True)
class Listed:
    """values: of any kind, as found. unit: what they are counted in, for errors. places: the number of each."""

    values: Sequence[Any]
    unit: str
    places: Sequence[int]


def row_numbers(given: Sequence[str], total: int) -> np.ndarray:
    """The rows that words or one file name, sorted, int64.

    Raises ValueError, with file and line, for what is no list of row numbers, and for numbers outside the data set's
    `total` rows or given more than once.
    """
    if len(given) == 1 and number(given[0]) is not None and os.path.exists(given[0]):
        raise ValueError(f"--forget-indices {given[0]}: a row number and a file. Write ./{given[0]} for the file.")
    if len(given) == 1 and number(given[0]) is None and os.path.isfile(given[0]):
        name, listed = given[0], _read(given[0])
    else:
        words = [word for each in given for word in str(each).split(",") if word.strip()]
        name, listed = " ".join(map(str, given))[:80], Listed(words, "value", range(1, len(words) + 1))
        odd = next((word for word in words if number(word) is None), None)
        if odd is not None:
            what = "a folder" if os.path.isdir(odd) else "one of several files" if os.path.isfile(odd) else "no file"
            raise ValueError(
                f"--forget-indices {name}: no list of row numbers ({odd!r} is {what}). Give numbers, or one file: "
                f"{FORMS}."
            )
    return _checked(f"--forget-indices {name}", listed, total)


def _checked(name: str, listed: Listed, total: int) -> np.ndarray:
    values = list(listed.values)
    if not values:
        raise ValueError(f"{name}: holds no row number. Name at least one row.")
    truth = [_truth(value) for value in values]
    if all(value is not None for value in truth):
        if len(values) != total:
            raise ValueError(
                f"{name}: a mask of {len(values)} true and false for {total} rows. Give one a row, or row numbers."
            )
        return np.flatnonzero(truth)
    seen: dict[int, int] = {}
    zeros_and_ones = len(values) == total > 2
    for place, value in zip(listed.places, values, strict=True):
        row = _whole(value)
        if row is None:
            raise ValueError(
                f"{name}, {listed.unit} {place}: {value!r} is no row number. Give whole numbers from 0 to {total - 1}."
            )
        zeros_and_ones &= row in (0, 1)
        if not 0 <= row < total:
            once = " Rows are counted from 0." if row == total else ""
            raise ValueError(
                f"{name}, {listed.unit} {place}: {row} is out of range; rows go from 0 to {total - 1}.{once}"
            )
        seen.setdefault(row, place)
    if zeros_and_ones:
        raise ValueError(
            f"{name}: {total} zeros and ones for {total} rows look like a mask, not like row numbers. Save it as true "
            "and false, or the row numbers: numpy.flatnonzero(mask)."
        )
    if len(seen) < len(values):
        again, place = next(
            (_whole(value), place)
            for place, value in zip(listed.places, values, strict=True)
            if seen[_whole(value)] != place
        )
        raise ValueError(
            f"{name}, {listed.unit} {place}: row {again} comes more than once, first as {listed.unit} {seen[again]}. "
            "Name each row once."
        )
    return np.sort(np.fromiter(seen, dtype=np.int64))


def _truth(value: Any) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().lower())
    return bool(value) if isinstance(value, bool | np.bool_) else None


def _whole(value: Any) -> int | None:
    """A whole number, 3.0 included: pandas and numpy.savetxt write such."""
    if isinstance(value, str):
        value = number(value)
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | Decimal | np.number):
        return None
    if value != value or value in (float("inf"), float("-inf")) or abs(value) > 2**63:
        return None
    return int(value) if value == int(value) else None


def _read(path: str) -> Listed:
    ending = os.path.splitext(path)[1].lower()
    readers = {".npy": _numpy, ".npz": _numpy, ".parquet": _parquet, ".csv": _csv, ".tsv": _csv, ".json": _json,
               ".jsonl": _json_lines}  # fmt: skip
    try:
        return readers.get(ending, _text)(path)
    except Wrong as error:
        raise ValueError(f"--forget-indices {path}{error}") from None
    except Exception as error:  # whatever a reader makes of a broken file
        why = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"--forget-indices {path}: no list of row numbers ({why}). Give {FORMS}.") from error


class Wrong(ValueError):
    """What is wrong with a file, and where; its name is put in front."""


def _numpy(path: str) -> Listed:
    with open(path, "rb") as file:
        found = np.load(file, allow_pickle=False)
        if isinstance(found, np.lib.npyio.NpzFile):
            if len(found.files) != 1:
                raise Wrong(f": holds the arrays {found.files}. Save one of them alone.")
            found = found[found.files[0]]
    if found.ndim != 1 or found.dtype.names:
        raise Wrong(f": holds {found.dtype} of shape {found.shape}. Save the row numbers as one list, array[:, 0].")
    return Listed(found.tolist(), "entry", range(len(found)))


def _parquet(path: str) -> Listed:
    import pyarrow.parquet

    found = pyarrow.parquet.read_table(path)
    column = _row_column(found.column_names)
    return Listed(found.column(column).to_pylist(), "row", range(found.num_rows))


def _json(path: str) -> Listed:
    found = json.loads(_decoded(path))
    if isinstance(found, dict):
        lists = [key for key, value in found.items() if isinstance(value, list)]
        if len(lists) != 1:
            raise Wrong(f": holds the lists {lists[:10]} by name. Save the list of row numbers alone.")
        found = found[lists[0]]
    if not isinstance(found, list):
        raise Wrong(f": holds {found!r}. Save a list of row numbers, [3, 17].")
    return _records(found, "entry", range(len(found)))


def _json_lines(path: str) -> Listed:
    values, places = [], []
    for place, line in enumerate(_decoded(path).split("\n"), 1):
        if line.strip():
            try:
                values.append(json.loads(line))
            except ValueError as error:
                raise Wrong(f", line {place}: {line.strip()[:40]!r} is no JSON ({error}). Correct it.") from None
            places.append(place)
    if len(values) == 1 and isinstance(values[0], list):
        return _records(values[0], "entry", range(len(values[0])))
    return _records(values, "line", places)


def _records(values: list, unit: str, places: Sequence[int]) -> Listed:
    if any(isinstance(value, list) for value in values):
        raise Wrong(": holds lists in a list. Save the row numbers as one list.")
    if values and all(isinstance(value, dict) for value in values):
        column = _row_column(list(dict.fromkeys(key for value in values for key in value)))
        values = [value.get(column) for value in values]
    return Listed(values, unit, places)


def _csv(path: str) -> Listed:
    text = _decoded(path)
    lines = [line for line in text.split("\n") if line.strip()]
    sign = next((sign for sign in "\t;," if lines and sign in lines[0]), ",")
    reader = csv.reader(text.split("\n"), delimiter=sign)
    rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(cell.strip() for cell in row)]
    if not rows:
        return Listed([], "line", [])
    head = rows[0][1]
    if all(number(cell) is not None or _truth(cell) is not None for cell in head):
        if head == ["0"] and len(rows) > 1:
            raise Wrong(", line 1: 0 is a row number, or the name that pandas gives a column. Name the column: row.")
        if len(rows) == 1 and len(head) > 2:  # one line that is a list
            return Listed(head, "value", range(1, len(head) + 1))
        if len(head) > 1:
            raise Wrong(f": a table of {len(head)} columns without names. Save the column of row numbers alone.")
        column, body = 0, rows
    else:
        column, body = head.index(_row_column(head)), rows[1:]
        if len(head) == 1 and (not _NAME.fullmatch(head[0]) or head[0].lower() in {"inf", "infinity", *READ_AS_EMPTY}):
            raise Wrong(f", line 1: {head[0][:40]!r} is no row number, and no name of a column. Name the column row.")
    for place, row in body:
        if len(row) != len(head):
            raise Wrong(f", line {place}: {len(row)} fields, the first line has {len(head)}. Correct it.")
    return Listed([row[column] for _, row in body], "line", [place for place, _ in body])


def _row_column(names: Sequence[str]) -> str:
    """The only column, or the only one that is named like a row number."""
    known = [name for name in names if _ROW_NAME.fullmatch(re.sub("[ _-]", "", str(name)).lower())]
    if len(names) == 1 or len(known) == 1:
        return (known or names)[0]
    shown = [f"{name} (an index that pandas wrote)" if name in _UNNAMED else name for name in names]
    raise Wrong(f": a table with the columns {shown[:10]}. Name one column row, or save the row numbers alone.")


def _text(path: str) -> Listed:
    lines = [(place, line.strip()) for place, line in enumerate(_decoded(path).split("\n"), 1) if line.strip()]
    rows = [(place, [word for word in re.split(r"[,;\s]+", line) if word]) for place, line in lines]
    for place, words in rows:
        odd = next((word for word in words if number(word) is None and _truth(word) is None), None)
        if odd is not None:
            raise Wrong(
                f", line {place}: {odd[:40]!r} is no row number (no list of row numbers, and no .npy, .npz, .csv, "
                ".json, .jsonl or .parquet file). Leave out what is none."
            )
        if len(words) > 1 and len(rows) > 1:
            raise Wrong(
                f", line {place}: {len(words)} numbers in one of {len(rows)} lines may be a table. Write one row "
                "number a line, or all in one line."
            )
    if len(rows) == 1:
        return Listed(rows[0][1], "value", range(1, len(rows[0][1]) + 1))
    return Listed([words[0] for _, words in rows if words], "line", [place for place, words in rows if words])


def _decoded(path: str) -> str:
    """A text file without its byte-order mark, its lines ended by \\n. PowerShell writes UTF-16."""
    with open(path, "rb") as file:
        content = file.read()
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
