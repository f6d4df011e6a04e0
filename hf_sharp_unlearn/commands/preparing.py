"""Data that is prepared for each model that a command runs: with its processor or tokenizer, and one numbering of the
labels, that of the first model."""

from collections.abc import Mapping
from typing import Any

from ..data import check_classes_fit, collator_for, preparation_of, prepare, read_table
from .options import Columns


class Preparation:
    """specs: split -> what the user names, or None. first: the model whose numbers the labels have.

    Raises ValueError as `prepare`.
    """

    def __init__(self, specs: Mapping[str, str | None], columns: Columns, first: str):
        self._specs = {name: spec for name, spec in specs.items() if spec is not None}
        self._columns, self.first = columns, first
        self._tables = {name: read_table(spec) for name, spec in self._specs.items()}
        self._made: dict[str, tuple[dict[str, Any], Any]] = {}
        self.sets, self.collator = self.of(first)

    def of(self, model: str, title: str = "--model") -> tuple[dict[str, Any], Any]:
        """(split -> data set, collator) for a model. Raises ValueError for one whose classes are others."""
        if model != self.first:
            check_classes_fit(self.first, model, f"{title} {model}")
        key = preparation_of(next(iter(self._tables.values())), model)
        if key not in self._made:
            sets = {
                name: prepare(table, self._specs[name], model, labels_of=self.first, **self._columns.as_arguments())
                for name, table in self._tables.items()
            }
            self._made[key] = sets, collator_for(next(iter(sets.values())), model)
        return self._made[key]
