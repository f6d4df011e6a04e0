"""Feature entanglement: how much the forget set and the retain set share one region of feature space.

E_Var   [E||f - mu_F||^2 + E||r - mu_R||^2] / [ (||mu_R - mu||^2 + ||mu_F - mu||^2) / 2 ]      higher: more entangled
        Zhao et al., NeurIPS 2024 (RUM), eq. of the "entanglement score"; mu: mean of all samples of both sets
E_Wp    W_p = ( min over couplings of E||f - r||^p )^(1/p)                                      higher: less entangled
        Wasserstein distance of order p between the two sets, in units of the features

f, r: features of forget and retain samples, scaled to length 1 (as the released code does) unless `unit=False`. A
class-wise value is the mean over the classes that both sets have, weighted by their number of samples.

normalisation="released" gives the numbers of the code released with Sharp MinMax, where both lie in [0, 1] and higher
is more entangled: E_Var / 1300, at most 1; 1 - W_1 with distances divided by the largest one. These are not comparable
between models: the largest distance is that of one pair of outliers, and 1300 is a constant of unknown origin.
"""

from collections.abc import Callable

import numpy as np

from .estimate import Estimate, Unavailable, Z

RESAMPLES = 100
EXACT_PAIRS = 1_000_000  # a cost matrix of 8 MB; the network simplex needs a fraction of a second for 1000 x 1000
PROJECTIONS = 50
RELEASED_SCALE = 1300.0
METHODS = ("auto", "exact", "sliced")
NORMALISATIONS = (None, "released")


def variance_entanglement(
    forget: np.ndarray, retain: np.ndarray, *, normalisation: str | None = None, unit: bool = True, seed: int = 0
) -> Estimate:
    """E_Var, in [0, inf]; with normalisation="released" in [0, 1]. Higher is more entangled.

    forget (N, D), retain (M, D): features. Equal means are complete entanglement: inf, or 1 if normalised (the
    released code returns 0). Does not change with scale and rotation of the features. The interval (100 bootstrap
    samples of both sets) is that of the populations' value, stretched to contain the estimate: that one is biased
    downwards, towards less entanglement, where the sets are small for their number of features.

    Raises ValueError for features that are not finite or do not fit, or an unknown normalisation.
    """
    _check_normalisation(normalisation)
    forget, retain = _checked(forget, retain, unit)
    draw = np.random.default_rng([seed, 9])
    sizes = len(forget), len(retain)
    whole = [_moments(x, np.full((1, len(x)), 1 / len(x))) for x in (forget, retain)]
    value = float(_ratio(*whole, *sizes)[0])
    weights = [draw.multinomial(len(x), np.full(len(x), 1 / len(x)), RESAMPLES) / len(x) for x in (forget, retain)]
    drawn = _ratio(_moments(forget, weights[0]), _moments(retain, weights[1]), *sizes)
    with np.errstate(divide="ignore"):
        # Few samples make the gap between the means look wider than it is, and resampling does so once more. The basic
        # bootstrap turns that round; it works on 1 / E_Var, where the gap stands alone.
        inverse, low, high = 1 / np.array([value, *np.quantile(drawn, [0.025, 0.975], method="nearest")])
        ends = (1 / np.maximum(2 * inverse - np.array([high, low]), 0)).tolist() if value > 0 else [value, value]
    method = "interval of the populations' value, basic bootstrap; the value is biased downwards for few samples"
    found = Estimate(value, min(sizes), min(ends[0], value), max(ends[1], value), method)
    return released_scale(found) if normalisation == "released" else found


def released_scale(raw: Estimate) -> Estimate:
    """E_Var as the released code scales it: over 1300, at most 1."""
    value, low, high = (
        None if end is None else min(end / RELEASED_SCALE, 1.0) for end in (raw.value, raw.low, raw.high)
    )
    return Estimate(value, raw.n, low, high, raw.method)


def wasserstein(
    forget: np.ndarray,
    retain: np.ndarray,
    p: int = 1,
    *,
    method: str = "auto",
    normalisation: str | None = None,
    unit: bool = True,
    seed: int = 0,
) -> Estimate:
    """E_Wp, the Wasserstein distance of order p (1 or 2), >= 0, in units of the features.

    forget (N, D), retain (M, D): features. method: "exact" (network simplex), "sliced" (over 50 random directions, the
    distance in one dimension; it is smaller, about 1 / sqrt(D) of the exact one for a shift), or "auto": exact up to
    1,000,000 pairs, sliced beyond. The result says which; they are not comparable with each other.
    normalisation="released": 1 - W_1 on distances divided by the largest, on at most 1000 samples a side.

    Intervals. Exact: the variance of the dual potentials (del Barrio & Loubes 2019), about the mean of the estimate at
    this number of samples; the estimate itself is biased upwards for few samples in many dimensions. Sliced: over the
    directions. Raises ValueError for unknown options and features that are not finite or do not fit.
    """
    _check_normalisation(normalisation)
    if p not in (1, 2) or method not in METHODS:
        raise ValueError(f"p={p!r}, method={method!r}: p is 1 or 2, method one of {METHODS}.")
    forget, retain = _checked(forget, retain, unit)
    if normalisation == "released":
        if p != 1:
            raise ValueError(f"p={p}: the released code has p = 1 only.")
        draw = np.random.default_rng([seed, 10])
        return _exact(*(x[np.sort(draw.permutation(len(x))[:1000])] for x in (forget, retain)), 1, scaled=True)
    if method == "auto":
        method = "exact" if len(forget) * len(retain) <= EXACT_PAIRS else "sliced"
    if method == "exact":
        return _exact(forget, retain, p)
    return _sliced(forget, retain, p, seed)


def class_wise(
    measure: Callable[[np.ndarray, np.ndarray], Estimate],
    forget: np.ndarray,
    retain: np.ndarray,
    forget_labels: np.ndarray | None,
    retain_labels: np.ndarray | None,
) -> Estimate:
    """Mean of `measure(forget, retain)` over the classes with two samples or more in both sets, weighted by their size.

    Give `wasserstein` one method for all classes: `class_method`.

    Raises Unavailable without labels or such a class.
    """
    if forget_labels is None or retain_labels is None:
        raise Unavailable("the samples have no class")
    values, weights = [], []
    for label in np.intersect1d(forget_labels, retain_labels):
        pair = forget[forget_labels == label], retain[retain_labels == label]
        if min(len(part) for part in pair) >= 2:
            values.append(measure(*pair))
            weights.append(len(pair[0]) + len(pair[1]))
    if not values:
        raise Unavailable("no class has two samples in both sets")
    weights = np.array(weights) / np.sum(weights)
    n = sum(value.n for value in values)
    centre = float(np.dot(weights, [value.value for value in values]))
    kinds = sorted({value.method.split(",")[0].split(";")[0] for value in values})
    how = f"mean over {len(values)} classes, {', '.join(kinds)}"
    if not np.isfinite(centre) or any(value.low is None for value in values):
        return Estimate(centre, n, method=how)
    # Classes are independent, so the squares of the half widths add.
    below = float(np.sqrt(np.sum([(w * (v.value - v.low)) ** 2 for w, v in zip(weights, values, strict=True)])))
    above = float(np.sqrt(np.sum([(w * (v.high - v.value)) ** 2 for w, v in zip(weights, values, strict=True)])))
    return Estimate(centre, n, centre - below, centre + above, how)


def class_method(forget_labels: np.ndarray, retain_labels: np.ndarray) -> str:
    """ "exact" if the largest class is small enough for it, else "sliced": the method of `wasserstein` for all
    classes."""
    sizes = [
        (forget_labels == c).sum() * (retain_labels == c).sum() for c in np.intersect1d(forget_labels, retain_labels)
    ]
    return "exact" if max(sizes, default=0) <= EXACT_PAIRS else "sliced"


def _moments(x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(means (B, D), variances (B,)) under each row of weights (B, N)."""
    means = weights.astype(x.dtype) @ x
    squares = weights @ np.einsum("nd,nd->n", x, x, dtype=np.float64)
    return means, np.maximum(squares - np.einsum("bd,bd->b", means, means, dtype=np.float64), 0)


def _ratio(forget: tuple, retain: tuple, n: int, m: int) -> np.ndarray:
    # mu lies between the two means, m / (n + m) of the way from that of the forget set.
    gap = ((forget[0] - retain[0]).astype(np.float64) ** 2).sum(1) * (n**2 + m**2) / (n + m) ** 2 / 2
    within = forget[1] + retain[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = within / gap
    # Means that differ by rounding only are equal.
    scale = np.einsum("bd,bd->b", forget[0], forget[0], dtype=np.float64) + within
    return np.where(gap <= 1e-12 * scale, np.inf, ratio)


def _exact(forget: np.ndarray, retain: np.ndarray, p: int, scaled: bool = False) -> Estimate:
    import ot

    n, m = len(forget), len(retain)
    cost = ot.dist(forget, retain, metric="euclidean" if p == 1 else "sqeuclidean").astype(np.float64)
    largest = float(cost.max())
    if scaled:
        cost = cost / largest if largest > 0 else cost
    power, log = ot.emd2([], [], cost, numItermax=10_000_000, log=True)
    # sqeuclidean subtracts squares, so equal points may end just below 0.
    power = max(float(power), 0.0)
    spread = float(np.sqrt(np.var(log["u"]) / n + np.var(log["v"]) / m))
    low, high = max(power - Z * spread, 0.0), power + Z * spread
    if scaled:
        ends = [min(max(1 - end, 0.0), 1.0) for end in (power, high, low)]
        return Estimate(ends[0], min(n, m), ends[1], ends[2], f"exact, {n} x {m}, distances over their maximum")
    ends = [end ** (1 / p) for end in (power, low, high)]
    return Estimate(ends[0], min(n, m), ends[1], ends[2], f"exact, {n} x {m}; interval about the mean at this size")


def _sliced(forget: np.ndarray, retain: np.ndarray, p: int, seed: int) -> Estimate:
    import ot

    directions = ot.sliced.get_random_projections(forget.shape[1], PROJECTIONS, seed=seed).astype(forget.dtype)
    powers = ot.wasserstein_1d(forget @ directions, retain @ directions, p=p)
    value, spread = float(np.mean(powers)), float(np.std(powers, ddof=1) / np.sqrt(PROJECTIONS))
    ends = [max(end, 0.0) ** (1 / p) for end in (value, value - Z * spread, value + Z * spread)]
    method = f"sliced, {len(forget)} x {len(retain)}; interval over {PROJECTIONS} directions"
    return Estimate(ends[0], min(len(forget), len(retain)), ends[1], ends[2], method)


def _checked(forget: np.ndarray, retain: np.ndarray, unit: bool) -> list[np.ndarray]:
    sets = [np.asarray(forget), np.asarray(retain)]
    if any(x.ndim != 2 or len(x) == 0 for x in sets) or sets[0].shape[1] != sets[1].shape[1] or not sets[0].shape[1]:
        raise ValueError(f"forget {sets[0].shape}, retain {sets[1].shape}: need features (N, D) and (M, D), D >= 1.")
    sets = [x if x.dtype in (np.float32, np.float64) else x.astype(np.float64) for x in sets]
    if not all(np.isfinite(x).all() for x in sets):
        raise ValueError("Features contain nan or inf: the model has diverged, or another feature_layer is needed.")
    if not unit:
        return sets
    lengths = [np.linalg.norm(x, axis=1, keepdims=True) for x in sets]
    return [x / np.where(length > 0, length, 1) for x, length in zip(sets, lengths, strict=True)]


def _check_normalisation(normalisation: str | None) -> None:
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"normalisation={normalisation!r}: must be one of {NORMALISATIONS}.")
