"""Rows that cannot be used: a picture that cannot be opened, no text, no label.

They are left out only if that is asked for, and never from the forget set: what cannot be read cannot be forgotten."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .configs import is_causal
from .pictures import Pictures, cells_in, undecoded
from .sources import IMAGES, LABELS


def bad_rows(data: Any, model: str, *, label: str | None = None, text: str = "text") -> dict[int, str]:
    """Row -> why it cannot be used, of a table as `prepare` would take it. Each picture is opened once."""
    import datasets

    columns, found = data.column_names, {}
    chosen = label or next((name for name in LABELS if name in columns), None)
    image = next((name for name in IMAGES if name in columns), None)
    if image is not None and isinstance(data.features[image], datasets.Image):
        stored = undecoded(data, image)
        faults = Pictures("RGB", image).faults(cells_in(stored, image))
        found |= {row: fault for row, fault in enumerate(faults) if fault is not None}
    elif image is None and "input_ids" not in columns and text in columns:
        texts = enumerate(data.with_format(None)[text][:])
        found |= {row: f"no text ({text})" for row, cell in texts if cell is None or cell == ""}
        chosen = label if label is None and is_causal(model) else chosen
    if chosen in columns:
        labels = enumerate(data.with_format(None)[chosen][:])
        found = {row: f"no label ({chosen})" for row, cell in labels if cell is None or cell != cell} | found
    return dict(sorted(found.items()))


def without_rows(data: Any, spec: str, bad: Mapping[int, str], forgotten: Sequence[int]) -> tuple[Any, np.ndarray]:
    """(the table without its bad rows, where the forgotten rows are in it). Raises ValueError if one of them is bad."""
    lost = [int(row) for row in forgotten if int(row) in bad]
    if lost:
        raise ValueError(
            f"{spec!r}, row {lost[0]}: {bad[lost[0]]}. It is to be forgotten ({len(lost)} such rows), and --skip_bad "
            "leaves out none of these. Repair it, or take it from the forget set."
        )
    if not bad:
        return data, np.asarray(forgotten)
    keep = np.setdiff1d(np.arange(len(data)), np.fromiter(bad, dtype=np.int64))
    if not len(keep):
        raise ValueError(f"{spec!r}: none of its {len(data)} rows can be used, e.g. row 0: {bad[0]}.")
    return data.select(keep), np.searchsorted(keep, forgotten)
