"""Differences of accuracies between two models on the same samples, and scores made of them, with intervals.

A score like Tug-of-War takes |difference|, and noise alone makes that larger than 0: a resampled |difference| is
biased away from a perfect score. So the interval comes from the signed differences: the range of the score while each
of them moves through its own interval.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from .estimate import CONFIDENCE, Estimate, wilson
from .outputs import Outputs, accuracy_of


@dataclass(frozen=True)
class Gap:
    """Two shares, and a function z -> interval of their difference, z standard errors to each side."""

    one: float
    other: float
    n: int
    interval: Callable[[float], tuple[float, float]]


def gap(one: Outputs, other: Outputs) -> Gap:
    """Of the accuracies of two models on the same samples."""
    if one.logits is not None:
        return paired_gap(one.correct, other.correct)
    values = accuracy_of(one).value, accuracy_of(other).value
    residuals = one.items * (one.correct - other.correct - values[0] + values[1]) / one.items.mean()
    error = float(np.sqrt(np.mean(residuals**2) / max(len(one) - 1, 1)))
    centre = values[0] - values[1]
    return Gap(*values, len(one), lambda z: (max(centre - z * error, -1.0), min(centre + z * error, 1.0)))


def paired_gap(one: np.ndarray, other: np.ndarray) -> Gap:
    """Of two shares on the same samples: Newcombe 1998, method 10 for paired data, from Wilson's intervals."""
    n, p, q = len(one), float(one.mean()), float(other.mean())
    spread = float(np.sqrt(p * (1 - p) * q * (1 - q)))
    phi = (float((one * other).mean()) - p * q) / spread if spread > 0 else 0.0

    def interval(z: float) -> tuple[float, float]:
        (l1, u1), (l2, u2) = wilson(p, n, z), wilson(q, n, z)
        below = (p - l1) ** 2 - 2 * phi * (p - l1) * (u2 - q) + (u2 - q) ** 2
        above = (u1 - p) ** 2 - 2 * phi * (u1 - p) * (q - l2) + (q - l2) ** 2
        return p - q - float(np.sqrt(max(below, 0))), p - q + float(np.sqrt(max(above, 0)))

    return Gap(p, q, n, interval)


def of_gaps(gaps: Mapping[str, Gap], score: Callable[..., float]) -> Estimate:
    """score(values of the one model, values of the other) with its interval: the range of the score over the intervals
    of all gaps, each at 95 % by Bonferroni. So a gap that may be zero is allowed to be zero."""
    value = score(*({key: getattr(gap, side) for key, gap in gaps.items()} for side in ("one", "other")))
    z = float(ndtri(1 - (1 - CONFIDENCE) / 2 / len(gaps)))
    ends = [gap.interval(z) for gap in gaps.values()]
    choices = [(low, high, *([0.0] if low < 0 < high else [])) for low, high in ends]
    scores = []
    for chosen in itertools.product(*choices):
        # Only differences matter; two shares with this difference:
        sides = [{k: min(max(s * gap, 0.0), 1.0) for k, gap in zip(gaps, chosen, strict=True)} for s in (1, -1)]
        scores.append(score(*sides))
    n = min(gap.n for gap in gaps.values())
    return Estimate(
        value, n, min(*scores, value), max(*scores, value), "range over the intervals of all gaps (Bonferroni)"
    )
