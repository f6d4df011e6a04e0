"""Which rows a run forgets, said before any work, and which it leaves out."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..data import bad_rows, without_rows
from .options import Columns


def chosen_line(rows: np.ndarray | None, spec: str, table: Any) -> str:
    """What is about to be forgotten, so that a wrong choice is seen at once. rows: None for all."""
    if rows is None:
        return f"forget set: all {len(table):,} rows of {spec}"
    first = ", ".join(map(str, rows[:5].tolist())) + (", ..." if len(rows) > 5 else "")
    return f"forget set: {len(rows):,} of {len(table):,} rows of {spec}, numbers {first} (counted from 0)"


def usable(
    tables: Mapping[str, Any],
    specs: Mapping[str, str],
    rows: np.ndarray | None,
    model: str,
    columns: Columns,
    say: bool,
) -> tuple[dict[str, Any], np.ndarray | None, dict[str, dict[int, str]]]:
    """(the tables without rows that cannot be used; where `rows` of "train" are then; what is left out, and why).

    Raises ValueError if a row of the forget set cannot be used.
    """
    kept, places, skipped = {}, rows, {}
    for name, table in tables.items():
        bad = bad_rows(table, model, label=columns.label, text=columns.text)
        forgotten = rows if name == "train" else range(len(table)) if name == "forget" else ()
        kept[name], found = without_rows(table, specs[name], bad, forgotten)
        places = found if name == "train" else places
        if bad:
            skipped[name] = bad
            row, why = next(iter(bad.items()))
            if say:
                print(f"left out of {specs[name]}: {len(bad):,} rows, e.g. row {row}: {why}", flush=True)
    return kept, places, skipped
