"""Membership inference with shadow models: how unusual is the model's answer for a sample, for this sample?

LiRA   phi = log p_y - log(1 - p_y) of shadow models is Gaussian for each sample (Carlini et al., arXiv 2112.03570)
       online    score = log N(phi; mu_in, s_in) - log N(phi; mu_out, s_out)
       offline   score = (phi - mu_out) / s_out, in standard deviations: their one-sided test
RMIA   score(x) = share of population samples z with [p(x) / p_mean(x)] / [p(z) / p_mean(z)] >= gamma
       (Zarifzadeh et al., arXiv 2312.03262); offline p_mean = (1 + a) / 2 * mean over OUT models + (1 - a) / 2

A higher score says "member". Locations are medians, as in LiRA. With fewer than SHARED models of a kind one standard
deviation serves all samples: a sample's own is too noisy.
"""

import numpy as np

SHARED = 16
FLOOR = 1e-6  # of a standard deviation


def lira(
    target: np.ndarray, shadows: np.ndarray, member: np.ndarray | None = None, shared: bool | None = None
) -> np.ndarray:
    """LiRA's score of each sample, (N,).

    target: (N,) margins phi under the attacked model. shadows: (S, N) margins under the shadow models. member: (S, N)
    boolean, True where a shadow model was trained on the sample; None: no shadow model was (offline). shared: one
    standard deviation for all samples; None decides by the number of models.

    Raises ValueError for shapes that do not fit, and samples without a model of a kind that is needed.
    """
    target, shadows = np.asarray(target, float), np.asarray(shadows, float)
    member = np.zeros(shadows.shape, bool) if member is None else np.asarray(member, bool)
    if shadows.ndim != 2 or shadows.shape[1:] != target.shape or member.shape != shadows.shape:
        raise ValueError(
            f"target {target.shape}, shadows {shadows.shape}, member {member.shape}: need (N,), (S, N), (S, N)."
        )
    out = _gaussian(shadows, ~member, shared, "not trained on it")
    if not member.any():
        return (target - out[0]) / out[1]
    inside = _gaussian(shadows, member, shared, "trained on it")
    return log_density(target, *inside) - log_density(target, *out)


def rmia(
    target: np.ndarray,
    out_mean: np.ndarray,
    population_target: np.ndarray,
    population_out_mean: np.ndarray,
    a: float = 0.3,
    gamma: float = 1.0,
) -> np.ndarray:
    """RMIA's offline score of each sample, (N,), in [0, 1].

    target: (N,) probability p_y under the attacked model. out_mean: (N,) its mean over models not trained on it.
    population_*: the same for (Z,) samples that the attacked model was not trained on, other ones than those scored.
    a: how much the OUT mean is trusted, in [0, 1] (the authors: 0.3 for CIFAR-10, 0.6 for CIFAR-100). gamma: >= 1.
    """
    if not (0 <= a <= 1) or gamma <= 0 or len(population_target) == 0:
        raise ValueError(f"a={a}, gamma={gamma}, {len(population_target)} population samples: need [0, 1], > 0, >= 1.")

    def ratio(p: np.ndarray, mean: np.ndarray) -> np.ndarray:
        return np.asarray(p, float) / np.maximum((1 + a) / 2 * np.asarray(mean, float) + (1 - a) / 2, 1e-12)

    others = np.sort(ratio(population_target, population_out_mean))
    return np.searchsorted(others, ratio(target, out_mean) / gamma, side="right") / len(others)


def _gaussian(values: np.ndarray, chosen: np.ndarray, shared: bool | None, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(median, standard deviation) over the chosen models of each sample."""
    count = chosen.sum(0)
    if (count == 0).any():
        raise ValueError(f"{int((count == 0).sum())} samples have no shadow model that was {kind}: train more of them.")
    masked = np.where(chosen, values, np.nan)
    centre = np.nanmedian(masked, 0)
    squares = np.where(chosen, (values - np.nanmean(masked, 0)) ** 2, 0)
    if count.min() < SHARED if shared is None else shared:
        degrees = (count - 1).sum()
        spread = np.full(len(centre), np.sqrt(squares.sum() / degrees) if degrees else 1.0)
    else:
        spread = np.sqrt(squares.sum(0) / np.maximum(count - 1, 1))
    return centre, np.maximum(spread, FLOOR)


def log_density(x: np.ndarray, centre: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Logarithm of a Gaussian's density, without the constant."""
    return -np.log(spread) - 0.5 * ((x - centre) / spread) ** 2
