"""Forgetting quality of the NeurIPS 2023 unlearning competition (Triantafillou et al., arXiv 2406.09073).

For each forget sample an attacker tells unlearned models from retrained ones by the margin phi. Its best

    epsilon = max( log(1 - delta - FPR) - log FNR,  log(1 - delta - FNR) - log FPR ),  at least 0,  delta = 1e-5

over two families of rules: one threshold ("larger" is the population with the larger median), and an interval that
catches the population with the smaller range, no more than 2 narrower or wider than that range. FPR = FNR = 0 gives
epsilon = inf; a rule with exactly one of them 0 is left out (too few models to know). At most 50, and 50 where one
range is less than 1 % of the other. Score F: 1 point for epsilon < 0.5, 1/2 below 1, 1/4 below 1.5, ..., 0 from
ceil(log(models - 1)) on; the mean over samples. Final score: F * RA_u / RA_r * TA_u / TA_r.

The competition's code walks a grid of 100 thresholds a unit. Here all rules that differ on the models at hand are
tried: there are finitely many, so the maximum is exact, and no smaller than the grid's.
"""

import math

import numpy as np

from .estimate import Estimate, mean
from .klom import checked_sets

DELTA = 1e-5
CAP = 50.0
SLACK = 2.0
BUCKET = 0.5


def forgetting_epsilon(unlearned: np.ndarray, retrained: np.ndarray) -> np.ndarray:
    """epsilon of each forget sample, (N,), in [0, 50]. Lower is better.

    unlearned (M, N), retrained (K, N): margins under M and K >= 3 models; the competition uses 512 of each. With few
    models epsilon is coarse: it cannot be seen beyond about log(models). Raises ValueError for other shapes and nan.
    """
    unlearned, retrained = checked_sets(unlearned, retrained, least=3)
    return np.array([_epsilon(unlearned[:, i], retrained[:, i]) for i in range(unlearned.shape[1])])


def forgetting_quality(unlearned: np.ndarray, retrained: np.ndarray) -> Estimate:
    """F, in [0, 1]: the mean number of points. Higher is better."""
    epsilons = forgetting_epsilon(unlearned, retrained)
    models = min(len(unlearned), len(retrained))
    buckets = int(math.ceil(math.log(models - 1)) / BUCKET)
    place = np.floor(epsilons / BUCKET)
    points = np.where(place < buckets, 0.5**place, 0)
    return mean(points, f"t interval over samples, {models} models a side")


def final_score(quality: float, unlearned: tuple[float, float], retrained: tuple[float, float]) -> float:
    """F * RA_u / RA_r * TA_u / TA_r: unlearned and retrained are (retain accuracy, test accuracy), means over models.

    Raises ValueError for a retrained accuracy of 0.
    """
    if min(retrained) <= 0:
        raise ValueError(f"retrained={retrained}: accuracies of 0 leave the ratio undefined.")
    return quality * unlearned[0] / retrained[0] * unlearned[1] / retrained[1]


def _epsilon(one: np.ndarray, other: np.ndarray) -> float:
    ranges = np.ptp(one), np.ptp(other)
    if max(ranges) == 0:  # both are points
        return 0.0 if one[0] == other[0] else CAP
    if min(ranges) / max(ranges) < 0.01:
        return CAP
    high, low = (one, other) if np.median(one) > np.median(other) else (other, one)
    narrow, wide = (one, other) if ranges[0] < ranges[1] else (other, one)
    best = max(_best(*_threshold_rates(high, low)), _best(*_interval_rates(narrow, wide)))
    return min(best, CAP)


def _best(fpr: np.ndarray, fnr: np.ndarray) -> float:
    """The largest epsilon of rules with these rates; 0 if all are left out."""
    if ((fpr == 0) & (fnr == 0)).any():
        return math.inf
    kept = (fpr > 0) & (fnr > 0)
    fpr, fnr = fpr[kept], fnr[kept]
    with np.errstate(invalid="ignore", divide="ignore"):  # 1 - delta - rate may be negative: no bound from that side
        sides = [np.log(1 - DELTA - fpr) - np.log(fnr), np.log(1 - DELTA - fnr) - np.log(fpr)]
    return max([0.0, *(float(np.nanmax(side)) for side in sides if side.size and not np.isnan(side).all())])


def _threshold_rates(positive: np.ndarray, negative: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(FPR, FNR) of "positive if phi >= t" for every t that matters."""
    cuts = np.unique(np.concatenate([positive, negative]))
    below = [np.searchsorted(np.sort(group), cuts, side="left") / len(group) for group in (positive, negative)]
    return 1 - below[1], below[0]


def _interval_rates(narrow: np.ndarray, wide: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(FPR, FNR) of "narrow if l <= phi <= r" for all intervals whose width is within SLACK of narrow's range."""
    points = np.unique(np.concatenate([narrow, wide]))
    width = np.ptp(narrow)
    edges = np.concatenate([[-np.inf], points, [np.inf]])
    first, last = np.triu_indices(len(points))
    # An interval that holds the points first..last can have any width between that of the points and their neighbours'.
    smallest, largest = points[last] - points[first], edges[last + 2] - edges[first]
    fits = (smallest <= width + SLACK) & (largest > width - SLACK)
    first, last = first[fits], last[fits]
    inside = []
    for group in (narrow, wide):
        ordered = np.sort(group)
        left = np.searchsorted(ordered, points, side="left")
        right = np.searchsorted(ordered, points, side="right")
        inside.append((right[last] - left[first]) / len(group))
    return inside[1], 1 - inside[0]
