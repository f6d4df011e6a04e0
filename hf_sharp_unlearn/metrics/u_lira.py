"""U-LiRA: for each forget sample, can one tell an unlearned model from a retrained one by its margin?

Hayes et al., arXiv 2403.01218. Under models that learned and unlearned the sample its margin phi is N(mu_u, s_u); under
models that never saw it, N(mu_r, s_r). A model is taken for an unlearned one if

    p_u / (p_u + p_r) > 1/2,     p_u = N(phi; mu_u, s_u),   p_r = N(phi; mu_r, s_r)

One half of the models of each kind makes the attacker, the other half is judged, so that nobody is judged by what was
fitted to it. Accuracy 1/2: unlearned models cannot be told from retrained ones, sample by sample; higher is worse. The
answers of one model to many samples are not independent: intervals are over the judged models.
"""

import numpy as np

from .estimate import Estimate, Z
from .klom import checked_sets
from .mia import CLIP
from .shadow import FLOOR, SHARED, log_density


def u_lira(target: np.ndarray, unlearned: np.ndarray, retrained: np.ndarray) -> np.ndarray:
    """log p_u - log p_r, (T, N): positive says "unlearned".

    target (T, N): margins of N forget samples under the models that are judged. unlearned (M, N), retrained (K, N): the
    same under M and K >= 2 models that make the attacker. With fewer than 16 of a kind all samples share one standard
    deviation. Raises ValueError for shapes that do not fit and too few models.
    """
    sides = [np.clip(side, -CLIP, CLIP) for side in checked_sets(unlearned, retrained, least=2)]
    target = np.clip(checked_sets(target, retrained)[0], -CLIP, CLIP)
    logs = [log_density(target, side.mean(0), _spread(side)) for side in sides]
    return logs[0] - logs[1]


def u_lira_summary(unlearned: np.ndarray, retrained: np.ndarray) -> dict[str, Estimate]:
    """{"accuracy", "auc"} in [0, 1] of models (M, N) and (K, N), M and K >= 4: of the decision, and of the log ratio as
    score, mean over samples. n: judged models, the smaller kind. The AUC's interval is DeLong's (1988), over models."""
    from scipy.stats import rankdata

    sides = checked_sets(unlearned, retrained, least=4)
    found, fooled = (u_lira(side[1::2], sides[0][::2], sides[1][::2]) for side in sides)
    ranks = rankdata(np.concatenate([found, fooled]), axis=0)
    above = (ranks[: len(found)] - rankdata(found, axis=0)) / len(fooled)
    below = 1 - (ranks[len(found) :] - rankdata(fooled, axis=0)) / len(found)
    parts = {
        # halved: the accuracy is the mean of two shares, and each share has its own models
        "accuracy": ((found > 0).mean(1) / 2, (fooled <= 0).mean(1) / 2),
        "auc": (above.mean(1), below.mean(1)),
    }
    summary = {}
    for name, (one, other) in parts.items():
        value = float(one.mean() + other.mean()) if name == "accuracy" else float(one.mean())
        half = Z * float(np.sqrt(one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other)))
        method = f"over {len(one)} unlearned and {len(other)} retrained models, for the attacker made of the others"
        n = min(len(one), len(other))
        summary[name] = Estimate(value, n, max(value - half, 0.0), min(value + half, 1.0), method)
    return summary


def _spread(values: np.ndarray) -> np.ndarray:
    variance = values.var(0, ddof=1)
    if len(values) < SHARED:
        variance = np.full_like(variance, variance.mean())
    return np.maximum(np.sqrt(variance), FLOOR)
