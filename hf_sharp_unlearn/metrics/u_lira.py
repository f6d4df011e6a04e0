"""U-LiRA: for each forget sample, can one tell an unlearned model from a retrained one by its margin?

Hayes et al., arXiv 2403.01218. Under models that learned and unlearned the sample its margin phi is N(mu_u, s_u); under
models that never saw it, N(mu_r, s_r). A model is taken for an unlearned one if

    p_u / (p_u + p_r) > 1/2,     p_u = N(phi; mu_u, s_u),   p_r = N(phi; mu_r, s_r)

Each model is judged by Gaussians that were fitted to all the others, so no model is needed twice. Accuracy 1/2: the
unlearned models cannot be told from retrained ones, sample by sample. Higher is worse.
"""

import numpy as np

from .estimate import Absent, Estimate, mean
from .klom import checked_sets
from .mia import CLIP
from .roc import attack_rates
from .shadow import FLOOR, SHARED


def u_lira(unlearned: np.ndarray, retrained: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log likelihood ratios log p_u - log p_r of the unlearned models (M, N) and of the retrained ones (K, N).

    unlearned (M, N), retrained (K, N): margins of N forget samples under M and K >= 3 models. With fewer than 16 models
    of a kind all samples share one standard deviation. Raises ValueError for other shapes and too few models.
    """
    sets = [np.clip(values, -CLIP, CLIP) for values in checked_sets(unlearned, retrained, least=3)]
    whole = [_gaussian(values) for values in sets]
    without = [_leave_one_out(values) for values in sets]
    return (
        _log_density(sets[0], *without[0]) - _log_density(sets[0], *whole[1]),
        _log_density(sets[1], *whole[0]) - _log_density(sets[1], *without[1]),
    )


def u_lira_summary(unlearned: np.ndarray, retrained: np.ndarray, seed: int = 0) -> dict[str, Estimate | Absent]:
    """{"accuracy", "auc", "tpr@1%", "tpr@0.1%"}; the interval of the accuracy is over samples."""
    found, fooled = u_lira(unlearned, retrained)
    right = ((found > 0).mean(0) + (fooled <= 0).mean(0)) / 2
    method = f"t interval over samples, {len(found)} unlearned and {len(fooled)} retrained models"
    return {"accuracy": mean(right, method), **attack_rates(found.ravel(), fooled.ravel(), seed)}


def _gaussian(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values.mean(0), _shared(values.var(0, ddof=1), len(values))


def _leave_one_out(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(means, standard deviations) (M, N): row i without model i, from sums over all."""
    n = len(values)
    centre = values.mean(0)
    mean_without = (n * centre - values) / (n - 1)
    squares = ((values - centre) ** 2).sum(0) - n / (n - 1) * (values - centre) ** 2
    return mean_without, _shared(np.maximum(squares, 0) / (n - 2), n - 1)


def _shared(variance: np.ndarray, models: int) -> np.ndarray:
    if models < SHARED:
        variance = np.broadcast_to(variance.mean(-1, keepdims=True), variance.shape)
    return np.maximum(np.sqrt(variance), FLOOR)


def _log_density(x: np.ndarray, centre: np.ndarray, spread: np.ndarray) -> np.ndarray:
    return -np.log(spread) - 0.5 * ((x - centre) / spread) ** 2
