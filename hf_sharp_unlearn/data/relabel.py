"""Random labels for the forget samples.

Convention: the label is uniform over the classes *other than the true one*, drawn anew in each epoch. It is a pure
function of (seed, epoch, index of the sample in the forget set): the same for any number of workers and processes and
after a resume. For a language model each target token is replaced by another token; -100 stays -100.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..runtime import derive_seed
from .sampling import Slot


@dataclass(frozen=True)
class RandomLabels:
    """Replaces, in a collated micro-batch of the stream "union", the labels of the forget samples.

    classes: number of classes C, labels are 0 to C - 1. first: index of the first forget sample in the union.
    names: keys under which labels may lie in a micro-batch.
    """

    classes: int
    first: int
    names: Sequence[str]
    seed: int

    def __call__(self, features: Mapping[str, Any], slots: Sequence[Slot]) -> None:
        """slots: what each row of the micro-batch is. Raises ValueError where labels cannot be replaced."""
        rows = [row for row, slot in enumerate(slots) if slot.index >= self.first]
        if not rows:
            return
        found = [name for name in self.names if isinstance(features.get(name), Tensor)]
        if not found:
            raise ValueError(
                f"forget_dataset: no label column ({' or '.join(self.names)}) to replace by random labels."
            )
        for name in found:
            labels = features[name]
            if labels.is_floating_point() or len(labels) != len(slots):
                raise ValueError(
                    f"forget_dataset: labels {name!r} of shape {tuple(labels.shape)} and {labels.dtype} for "
                    f"{len(slots)} samples. Random labels need one row of integer class labels a sample; for others "
                    "use NegGradPlus or Scrub."
                )
            labels = features[name] = labels.clone()
            for row in rows:
                slot = slots[row]
                labels[row] = self.draw(labels[row], slot.epoch, slot.index - self.first)

    def draw(self, true: Tensor, epoch: int, index: int) -> Tensor:
        """Labels for one sample: as many as `true` has, none of them equal to the true one."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "random label", epoch, index))
        shift = torch.randint(1, self.classes, true.shape, generator=generator)
        return torch.where(true == -100, true, (true + shift) % self.classes)
