"""Samples that two sets of a run share, by content: a forget sample that is retained too is learnt again.

Rows of one table are compared by their numbers when a trainer is made (`data_checks`). Here it is what the model sees
that is compared, when training begins: the same picture in two files, a training set that was given as the retain set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from transformers.utils import logging

from ..data import contents_of, rows_of, shared

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Overlap:
    """rows: of the first set, which are in the second too. looked_at: how many samples of each set, of how many."""

    first: str
    second: str
    rows: tuple[int, ...]
    looked_at: tuple[tuple[int, int], tuple[int, int]]

    @property
    def whole(self) -> bool:
        """True if every sample of the first set is in the second."""
        return len(self.rows) == self.looked_at[0][1]

    def describe(self, rows: bool = True) -> str:
        """E.g. "4 of 20 samples of the forget set are in the retain set too (identical inputs, rows 0, 1, 2, 3)".

        rows: name some. What is published says nothing of them."""
        looked, total = self.looked_at[0]
        shown = ", ".join(map(str, self.rows[:5])) + (", ..." if len(self.rows) > 5 else "")
        text = f"{len(self.rows)} of {total} samples of the {self.first} set are in the {self.second} set too"
        text += " (identical inputs" + (f", rows {shown}" if rows else "")
        if any(seen < size for seen, size in self.looked_at):
            text += f"; compared: the first {looked} with the first {self.looked_at[1][0]} of {self.looked_at[1][1]}"
        return text + ")"


def overlaps(sets: Mapping[str, Any], used: Sequence[str] = (), labels: Sequence[str] = ()) -> list[Overlap]:
    """Of each two of the sets that share samples. used, labels: names of what the model takes, and of its labels."""
    contents = {name: contents_of(data, used, labels) for name, data in sets.items() if data is not None}
    found = []
    for (first, one), (second, other) in combinations(contents.items(), 2):
        rows = shared(one, other)
        if len(rows):
            looked_at = tuple((len(each.numbers), each.total) for each in (one, other))
            found.append(Overlap(first, second, tuple(rows.tolist()), looked_at))
    return found


def checked_overlaps(sets: Mapping[str, Any], used: Sequence[str], labels: Sequence[str]) -> list[Overlap]:
    """`overlaps`; raises ValueError if the whole forget set is retained, and warns of what else is shared.

    It is no error if labels differ: a wrong one is forgotten, the right one retained. Nor if both sets are rows of one
    table: then somebody has chosen them, and has rows that are equal."""
    found = overlaps(sets, used, labels)
    for overlap in found:
        pair = {overlap.first, overlap.second}
        chosen = rows_of(sets["forget"]) is not None
        if pair == {"forget", "retain"} and overlap.whole and not chosen and _same_labels(sets, used, labels):
            raise ValueError(
                f"forget_dataset, retain_dataset: {overlap.describe()}, which is all of it. Nothing can be "
                "forgotten that is retained: leave these samples out of the retain set, as split_forget(train, "
                "indices) does."
            )
        why = "they are learnt and forgotten at once" if "retain" in pair else "it is no unseen data for them"
        logger.warning("%s: %s. Leave them out of one of the two.", overlap.describe(), why)
    return found


def _same_labels(sets: Mapping[str, Any], used: Sequence[str], labels: Sequence[str]) -> bool:
    forget, retain = (contents_of(sets[name], used, labels, labelled=True) for name in ("forget", "retain"))
    # Where all retained samples are equal, these are no data to tell anything by.
    return len(shared(forget, retain)) == forget.total and len(np.unique(retain.numbers)) > 1
