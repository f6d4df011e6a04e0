"""Cells of a CSV file as they are written: a reader makes one number of 01234 and 1234, and of versions 1.1 and 1.10.

Who looks for one of them means these letters, or does not know of the others: the condition is refused.
"""

import os
import re
from typing import Any

from .conditions import parse
from .words import number

_PADDED = re.compile(r"\s*[+-]?0[0-9]")


def check_spellings(data: Any, spec: str, condition: str) -> None:
    """Raise ValueError if a number that a condition asks for is written in more than one way in the CSV file `spec`."""
    asked = parse(condition, data.column_names)
    kind = str(getattr(data.features[asked.column], "dtype", ""))
    if asked.ordered or not kind.startswith(("int", "float")):
        return
    cells = _written(spec, asked.column)
    if len(cells) != len(data):
        return
    for word in asked.words:
        value = number(word.text)
        rows: dict[str, int] = {}
        for row, cell in enumerate(cells):
            if number(cell) == value is not None:
                rows.setdefault(cell.strip(), row)
        padded = [cell for cell in rows if cell != word.text and (_PADDED.match(cell) or _PADDED.match(word.text))]
        if len(rows) > 1 or padded:
            others = ", ".join(f"row {row} {cell!r}" for cell, row in list(rows.items())[:3])
            raise asked.refused(
                f"column {asked.column!r} holds this number written otherwise ({others}), and was read as numbers. "
                "Write the cells alike, or save the table as .parquet or .jsonl with this column as text."
            )


def is_csv(spec: str | None) -> bool:
    return spec is not None and os.path.splitext(spec)[1] == ".csv" and os.path.isfile(spec)


def _written(path: str, column: str) -> list[str]:
    import pandas

    return pandas.read_csv(path, usecols=[column], dtype=str, keep_default_na=False)[column].tolist()
