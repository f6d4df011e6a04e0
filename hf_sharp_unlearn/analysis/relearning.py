"""The relearning attack: does what was forgotten come back after a few steps of fine-tuning?

From Dormant to Deleted (arXiv 2505.22310): fine-tuning on retain samples *alone* may bring the accuracy on the forget
set back; then it was dormant, not deleted. Two attacks, each on a copy of the model:

    "forget"   fine-tune on k forget samples; watch the other forget samples
    "retain"   fine-tune on retain samples only; watch all forget samples

Result: the curve of the accuracy over steps, and its area, the mean accuracy along the curve (trapezoids), in [0, 1].
The retrained model's own area is the ideal: it never had these samples, so what it learns here is no memory.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from ..data import select_rows
from ..metrics import Estimate, accuracy_of, collect_outputs
from ..runtime import derive_seed
from .fine_tuning import fine_tune


@dataclass(frozen=True)
class Relearning:
    """How to attack. samples: k, forget samples to fine-tune on (at most half of the forget set); steps: of AdamW at a
    constant learning_rate on batches of batch_size; every: steps between two looks.

    Raises ValueError for values that are not positive.
    """

    samples: int = 16
    steps: int = 50
    every: int = 5
    learning_rate: float = 1e-4
    batch_size: int = 32

    def __post_init__(self):
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"Relearning({name}={value!r}): must be positive.")


@dataclass(frozen=True)
class RelearningCurve:
    """steps: (P,) optimizer steps, from 0. accuracy: (P,) on the watched forget samples, each with its interval. area:
    mean accuracy along the curve, in [0, 1]. trained, watched: numbers of samples."""

    steps: list[int]
    accuracy: list[Estimate]
    area: float
    trained: int
    watched: int


def relearning_attack(
    model: nn.Module,
    forget: Any,
    retain: Any = None,
    options: Relearning | None = None,
    *,
    seed: int = 0,
    collator: Callable | None = None,
    label_names: Sequence[str] = ("labels",),
    batch_size: int = 128,
    progress: bool = True,
) -> dict[str, RelearningCurve]:
    """Return {"forget": curve, "retain": curve}, the second one if there is a retain set. The model is not touched.

    forget, retain: map-style data sets; the k samples depend on the seed only, so two models meet the same attack.
    batch_size: of the passes that watch; that of the attack is in the options.

    Raises ValueError for fewer than two forget samples.
    """
    options = options or Relearning()
    if len(forget) < 2:
        raise ValueError(f"forget has {len(forget)} samples: needs one to fine-tune on and one to watch.")
    order = np.random.default_rng(derive_seed(seed, "relearning")).permutation(len(forget))
    count = min(options.samples, len(forget) // 2)
    parts = [select_rows(forget, np.sort(rows)) for rows in (order[:count], order[count:])]
    attacks = {"forget": (parts[0], parts[1])}
    if retain is not None:
        attacks["retain"] = (retain, forget)
    shared = {"collator": collator, "label_names": label_names}
    curves = {}
    for name, (trained, watched) in attacks.items():
        steps: list[int] = []
        found: list[Estimate] = []

        def look(step: int, copy: nn.Module, watched: Any, steps: list, found: list) -> None:
            if step % options.every and step != options.steps:
                return
            outputs = collect_outputs(
                copy, watched, batch_size=batch_size, features=False, name="forget", progress=False, **shared
            )
            steps.append(step)
            found.append(accuracy_of(outputs))

        fine_tune(
            model,
            trained,
            options.steps,
            learning_rate=options.learning_rate,
            batch_size=options.batch_size,
            seed=seed,
            on_step=functools.partial(look, watched=watched, steps=steps, found=found),
            name=f"relearn from {name} samples",
            progress=progress,
            **shared,
        )
        values = [estimate.value for estimate in found]
        area = float(np.trapezoid(values, steps) / steps[-1])
        curves[name] = RelearningCurve(steps, found, area, len(trained), len(watched))
    return curves
