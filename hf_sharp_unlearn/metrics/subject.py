"""What metrics are computed from: the outputs of a model, and of the models around it."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from . import mia
from .estimate import Absent, Unavailable
from .outputs import Outputs

Splits = Mapping[str, Outputs]


@dataclass(eq=False)
class Subject:
    """A model under examination: its outputs by split ("forget", "retain", "test"), and those of models around it.

    shadows: models trained without forget and test samples. unlearned, retrained: sets of models made in the same way
    as this one, and as the retrained model, with different seeds. svc_samples: a side, at most; 0 switches the SVC
    attacks off. rmia_a: see `shadow.rmia`.
    """

    splits: Splits
    seed: int = 0
    svc_samples: int = mia.SVC_SAMPLES
    shadows: Sequence[Splits] = ()
    unlearned: Sequence[Splits] = ()
    retrained: Sequence[Splits] = ()
    rmia_a: float = 0.3

    def __getitem__(self, split: str) -> Outputs:
        if split not in self.splits:
            raise Unavailable(f"no {split} set was given")
        return self.splits[split]

    @property
    def without(self) -> str | None:
        """Why the model has no classes, if it has none."""
        return next((outputs.without for outputs in self.splits.values() if outputs.without), None)

    @functools.cached_property
    def judged(self) -> tuple[dict[str, np.ndarray | Absent], int]:
        """The SVC attacks: see `mia.svc_judgements`."""
        if self.without:
            raise Unavailable(self.without)
        if self.svc_samples == 0:
            raise Unavailable("the SVC attacks were switched off (svc_samples=0)")
        return mia.svc_judgements(self["retain"], self["test"], self["forget"], self.svc_samples, self.seed)
