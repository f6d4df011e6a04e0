"""How well a score tells members from non-members: ROC, AUC, and TPR at a low FPR.

AUC          P(score of a member > score of a non-member) + P(equal) / 2; 1/2 is chance. Interval: DeLong et al. 1988.
TPR @ x      the largest true positive rate among thresholds whose false positive rate is at most x (Carlini et al.,
             arXiv 2112.03570). (RULI's code reads the point whose FPR is *closest* to x, which may exceed it.)
"""

import math

import numpy as np

from .estimate import Absent, Estimate, Unavailable, Z, wilson

RESAMPLES = 200


def roc_curve(members: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(FPR, TPR), both rising from 0 to 1, one point per distinct score; a higher score says "member"."""
    members, others = _checked(members, others)
    values = np.unique(np.concatenate([members, others]))[::-1]
    caught = [(len(s) - np.searchsorted(np.sort(s), values, side="left")) / len(s) for s in (others, members)]
    return np.concatenate([[0.0], caught[0]]), np.concatenate([[0.0], caught[1]])


def auc(members: np.ndarray, others: np.ndarray) -> Estimate:
    """Area under the ROC curve, in [0, 1]. n: the smaller group.

    members (N,), others (M,): scores. Raises Unavailable for an empty group, ValueError for nan.
    """
    from scipy.stats import rankdata  # a second to import: not for those who want no such number

    members, others = _checked(members, others)
    n, m = len(members), len(others)
    ranks = rankdata(np.concatenate([members, others]))
    # Share of the other group that lies below each score: the placements of DeLong et al.
    above = (ranks[:n] - rankdata(members)) / m
    below = 1 - (ranks[n:] - rankdata(others)) / n
    value = float(above.mean())
    if min(n, m) < 2:
        return Estimate(value, min(n, m), method=f"{n} members, {m} non-members")
    spread = math.sqrt(above.var(ddof=1) / n + below.var(ddof=1) / m)
    low, high = max(0.0, value - Z * spread), min(1.0, value + Z * spread)
    if spread == 0:  # perfect separation: the rule of three, instead of an interval of no width
        low, high = (value - 3 / min(n, m), value) if value > 0.5 else (value, value + 3 / min(n, m))
        low, high = max(0.0, low), min(1.0, high)
    return Estimate(value, min(n, m), low, high, f"DeLong interval, {n} members, {m} non-members")


def tpr_at_fpr(members: np.ndarray, others: np.ndarray, fpr: float, seed: int = 0) -> Estimate:
    """Largest TPR at a false positive rate of at most `fpr`, in (0, 1). Chance: `fpr`.

    The interval covers both groups: the threshold comes from the non-members, so both are drawn anew (200 times), and
    it is never narrower than Wilson's for a known threshold. Raises Unavailable with fewer than 1 / fpr non-members:
    such a rate cannot be seen in them.
    """
    members, others = _checked(members, others)
    if len(others) * fpr < 1 - 1e-9:
        raise Unavailable(f"needs at least {math.ceil(1 / fpr)} non-members, there are {len(others)}")
    allowed = int(fpr * len(others) + 1e-9)
    members, others = np.sort(members), np.sort(others)
    value = _tpr(members, others, allowed)
    draw = np.random.default_rng([seed, 11])
    drawn = [
        _tpr(*(np.sort(group[draw.integers(len(group), size=len(group))]) for group in (members, others)), allowed)
        for _ in range(RESAMPLES)
    ]
    low, high = map(float, wilson(value, len(members)))
    low, high = min(low, float(np.quantile(drawn, 0.025))), max(high, float(np.quantile(drawn, 0.975)))
    method = f"bootstrap and Wilson interval, {len(members)} members, {len(others)} non-members"
    return Estimate(value, len(members), low, high, method)


def attack_rates(members: np.ndarray, others: np.ndarray, seed: int = 0) -> dict[str, Estimate | Absent]:
    """{"auc", "tpr@1%", "tpr@0.1%"} of scores; a rate that so few non-members cannot show is `Absent`."""
    rates: dict[str, Estimate | Absent] = {"auc": auc(members, others)}
    for name, fpr in (("tpr@1%", 0.01), ("tpr@0.1%", 0.001)):
        try:
            rates[name] = tpr_at_fpr(members, others, fpr, seed)
        except Unavailable as reason:
            rates[name] = Absent(str(reason))
    return rates


def _tpr(members: np.ndarray, others: np.ndarray, allowed: int) -> float:
    """Of sorted scores: members strictly above the highest score that `allowed` non-members exceed."""
    if allowed >= len(others):
        return 1.0
    barrier = others[len(others) - 1 - allowed]
    return float((len(members) - np.searchsorted(members, barrier, side="right")) / len(members))


def _checked(members: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    members, others = np.asarray(members, float), np.asarray(others, float)
    if len(members) == 0 or len(others) == 0:
        raise Unavailable(f"needs members and non-members, there are {len(members)} and {len(others)}")
    if np.isnan(members).any() or np.isnan(others).any():
        raise ValueError("Scores of an attack contain nan.")
    return members, others
