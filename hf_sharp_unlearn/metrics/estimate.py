"""A number with what stands behind it: how many samples, and an interval where it is an estimate."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special  # not scipy.stats: it takes a second to import, in every process

CONFIDENCE = 0.95
Z = float(special.ndtri(0.5 + CONFIDENCE / 2))


@dataclass(frozen=True)
class Estimate:
    """A value, the number of samples behind it and its 95 % interval.

    n: samples; where two groups are compared, the smaller one. low, high: None where no interval is known. method: how
    value and interval were computed, in a few words.
    """

    value: float
    n: int
    low: float | None = None
    high: float | None = None
    method: str = ""


@dataclass(frozen=True)
class Absent:
    """A number that could not be computed, with the reason. It is never reported as 0."""

    reason: str


class Unavailable(Exception):
    """Raised by a metric whose input is missing; the report turns it into `Absent`."""


def share(flags: np.ndarray, method: str = "") -> Estimate:
    """Share of true flags (N,), in [0, 1], with Wilson's interval (Wilson 1927), which is never empty.

    Raises Unavailable for no flags.
    """
    n = len(flags)
    if n == 0:
        raise Unavailable("there are no samples")
    p = float(np.mean(flags))
    low, high = map(float, wilson(p, n))
    return Estimate(p, n, low, high, method or "Wilson interval")


def wilson(p: Any, n: Any, z: float = Z) -> tuple[Any, Any]:
    """Interval of a probability of which the share p was seen in n draws; z standard errors, by default 95 %.

    p, n: numbers, or arrays of one shape.
    """
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    # p = 0 and p = 1 are end points of their intervals; rounding must not leave them outside.
    return np.maximum(0.0, np.minimum(centre - half, p)), np.minimum(1.0, np.maximum(centre + half, p))


def mean(values: np.ndarray, method: str = "") -> Estimate:
    """Mean of values (N,) with Student's interval; without one for a single value or values that are not finite.

    Raises Unavailable for no values.
    """
    n = len(values)
    if n == 0:
        raise Unavailable("there are no samples")
    value = float(np.mean(values))
    if n < 2 or not np.isfinite(values).all():
        return Estimate(value, n, method=method)
    half = float(special.stdtrit(n - 1, 0.5 + CONFIDENCE / 2) * np.std(values, ddof=1) / math.sqrt(n))
    return Estimate(value, n, value - half, value + half, method or "t interval")


def percentile(values: np.ndarray, percent: float) -> Estimate:
    """The `percent`-th percentile of values (N,), percent in (0, 100), with its interval from order statistics.

    The number of values below the percentile is binomial, so two ranks bound it, whatever the distribution (David and
    Nagaraja 2003, 7.1). An end without such a rank (few samples) is the smallest or largest value.
    """
    from scipy.stats import binom

    n = len(values)
    if n == 0:
        raise Unavailable("there are no samples")
    ordered = np.sort(values)
    low, high = binom.ppf([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], n, percent / 100)
    value = float(np.percentile(ordered, percent))
    ends = ordered[max(int(low) - 1, 0)], ordered[min(int(high), n - 1)]
    return Estimate(value, n, min(float(ends[0]), value), max(float(ends[1]), value), "order statistics")
