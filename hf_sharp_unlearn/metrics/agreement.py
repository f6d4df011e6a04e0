"""How alike two models answer: agreement of their predictions, and Jensen-Shannon divergence of their probabilities.

JS(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2 with logarithms to base 2: 0 for equal distributions, 1 for disjoint ones.
"""

import numpy as np
from scipy.special import log_softmax

from .estimate import Estimate, Unavailable, mean, share
from .outputs import Outputs


def prediction_agreement(one: Outputs, other: Outputs) -> Estimate:
    """Share of items for which both models predict the same class, in [0, 1]. Higher is closer.

    Raises ValueError for outputs on different samples.
    """
    _same_samples(one, other)
    same = one.predictions == other.predictions
    if one.logits is None:  # tokens of a sample are not independent: the interval is over samples
        owner = np.repeat(np.arange(len(one)), one.items)
        return mean(np.bincount(owner, same) / one.items, "mean over samples of the share of tokens, t interval")
    return share(same)


def jensen_shannon(one: Outputs, other: Outputs) -> Estimate:
    """Mean Jensen-Shannon divergence over samples, in [0, 1] bit. Lower is closer. Classifiers only."""
    _same_samples(one, other)
    if one.logits is None:
        raise Unavailable("token probabilities are not kept: it is measured for classifiers only")
    if one.logits.shape != other.logits.shape:
        raise ValueError(f"Logits of shape {one.logits.shape} and {other.logits.shape} have different classes.")
    logs = [log_softmax(outputs.logits.astype(np.float64), axis=1) for outputs in (one, other)]
    middle = np.logaddexp(*logs) - np.log(2)
    parts = []
    for log_p in logs:
        with np.errstate(invalid="ignore"):  # 0 * (-inf - -inf)
            parts.append(np.where(np.isneginf(log_p), 0, np.exp(log_p) * (log_p - middle)).sum(1))
    return mean(np.clip((parts[0] + parts[1]) / 2 / np.log(2), 0, 1))


def _same_samples(one: Outputs, other: Outputs) -> None:
    if len(one.targets) != len(other.targets) or not np.array_equal(one.targets, other.targets):
        raise ValueError(
            f"The models saw different samples ({len(one)} and {len(other)}), or in another order: their labels differ."
        )
