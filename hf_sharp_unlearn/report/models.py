"""The models of a report, each with the data that it gets: the samples of the judged model, prepared for this one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.data import DataLoader
from transformers import default_data_collator

from ..data import Renumbered, class_order
from ..metrics import Outputs, collect_outputs


@dataclass(frozen=True)
class Prepared:
    """A model with data of its own, for `evaluate_unlearning`: the same samples in the same order as those of the
    judged model, made ready with this model's own processor or tokenizer.

    sets: split -> data set. Labels are those of the judged model: models that call their classes alike and number them
    otherwise are told by their configs. collator: transformers' default if None.
    """

    model: nn.Module
    sets: Mapping[str, Any]
    collator: Callable | None = None


@dataclass(frozen=True)
class Runner:
    """A model of the report as it is run. order: see `class_order`."""

    model: nn.Module
    title: str
    sets: Mapping[str, Any]
    collator: Callable | None
    order: list[int] | None
    label_names: Sequence[str]

    def outputs(self, splits: Iterable[str], **options: Any) -> dict[str, Outputs]:
        """Of each split, in the numbers of the judged model."""
        found = {
            split: collect_outputs(
                self.model,
                self.sets[split],
                collator=self.collator,
                label_names=self.label_names,
                name=f"{self.title} {split}",
                **options,
            )
            for split in splits
        }
        if self.order is None:
            return found
        return {split: outputs.reordered(self.order) for split, outputs in found.items()}


def runner_of(
    given: nn.Module | Prepared,
    title: str,
    judged: nn.Module,
    sets: Mapping[str, Any],
    collator: Callable | None,
    label_names: Sequence[str],
) -> Runner:
    """A model as it is run beside the judged one. Raises ValueError for classes that do not fit, and samples that are
    not as many."""
    model = given
    if isinstance(given, Prepared):
        model = given.model
        for name, data in sets.items():
            if name not in given.sets or len(given.sets[name]) != len(data):
                raise ValueError(
                    f"{title}: its {name} set has {len(given.sets.get(name, ()))} samples, that of the model "
                    f"{len(data)}: both need the same samples in the same order."
                )
        sets, collator = given.sets, given.collator
    order = None if model is judged else class_order(judged, model, title)
    if order is not None:
        loaders = [name for name, data in sets.items() if isinstance(data, DataLoader)]
        if loaders:
            raise ValueError(
                f"{title} numbers its classes otherwise than the model, and {', '.join(loaders)} is a DataLoader, "
                "whose labels cannot be changed: pass map-style data sets."
            )
        collator = Renumbered(collator or default_data_collator, label_names, order)
    return Runner(model, title, sets, collator, order, label_names)
