"""KLoM: KL divergence between the margins of unlearned models and of retrained ones, sample by sample.

Georgiev et al., arXiv 2410.23232. Margin: z_y - log sum_{i != y} e^{z_i}, clipped to +-100. For each sample: 20 equal
bins between the smallest and the largest margin of both kinds of models, KL(P || Q) of the two histograms, where a bin
of Q that is empty but in P counts as FLOOR, and both are made to sum to 1.

The paper documents P = unlearned, Q = retrained; its benchmark passes them the other way round. `direction` names it.
(That code also drops the largest margin, which falls outside its last bin.) 0 is perfect; the largest value is about
-log FLOOR = 11.5.
"""

import numpy as np

from .estimate import Estimate, mean, percentile
from .mia import CLIP

BINS = 20
FLOOR = 1e-5
DIRECTIONS = ("unlearned_retrained", "retrained_unlearned")


def klom(unlearned: np.ndarray, retrained: np.ndarray, direction: str = DIRECTIONS[0]) -> np.ndarray:
    """KLoM of each sample, (N,), >= 0. Lower is better.

    unlearned (M, N), retrained (K, N): margins of N samples under M and K models; the authors use 100 of each.
    direction: "unlearned_retrained" is KL(unlearned || retrained).

    Raises ValueError for shapes that do not fit, nan, or an unknown direction.
    """
    unlearned, retrained = checked_sets(unlearned, retrained)
    if direction not in DIRECTIONS:
        raise ValueError(f"direction={direction!r}: must be one of {DIRECTIONS}.")
    sets = [np.clip(values, -CLIP, CLIP) for values in (unlearned, retrained)]
    low = np.minimum(sets[0].min(0), sets[1].min(0))
    width = np.maximum(sets[0].max(0), sets[1].max(0)) - low
    histograms = []
    for values in sets:
        place = np.minimum((values - low) / np.where(width > 0, width, 1) * BINS, BINS - 1).astype(int)
        counts = np.zeros((values.shape[1], BINS))
        np.add.at(counts, (np.arange(values.shape[1])[None].repeat(len(values), 0), place), 1)
        histograms.append(counts / len(values))
    p, q = histograms if direction == DIRECTIONS[0] else histograms[::-1]
    q = np.where(p > 0, np.maximum(q, FLOOR), q)
    q = q / q.sum(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.maximum(np.where(p > 0, p * np.log(p / q), 0).sum(1), 0)


def klom_summary(unlearned: np.ndarray, retrained: np.ndarray, direction: str = DIRECTIONS[0]) -> dict[str, Estimate]:
    """{"mean", "p95"}: mean and 95th percentile over samples, which the authors report."""
    values = klom(unlearned, retrained, direction)
    return {"mean": mean(values), "p95": percentile(values, 95)}


def checked_sets(unlearned: np.ndarray, retrained: np.ndarray, least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Both as float arrays (models, N). Raises ValueError where they do not fit or have fewer than `least` models."""
    one, other = np.asarray(unlearned, float), np.asarray(retrained, float)
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1] or one.shape[1] == 0:
        raise ValueError(f"unlearned {one.shape}, retrained {other.shape}: need (models, N) with the same N >= 1.")
    if min(len(one), len(other)) < least:
        raise ValueError(f"{len(one)} unlearned and {len(other)} retrained models: need at least {least} of each.")
    if np.isnan(one).any() or np.isnan(other).any():
        raise ValueError("Margins contain nan: a model has diverged.")
    return one, other
