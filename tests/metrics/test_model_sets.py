"""KLoM, U-LiRA and forgetting quality on synthetic sets of models, against their published definitions."""

import math

import numpy as np
import pytest
from scipy import stats

from hf_sharp_unlearn.metrics import (
    final_score,
    forgetting_epsilon,
    forgetting_quality,
    klom,
    klom_summary,
    u_lira,
    u_lira_summary,
)


def margins(models=60, samples=30, shift=0.0, spread=1.0, seed=0):
    return np.random.default_rng(seed).normal(shift, spread, (models, samples))


# ---- KLoM ----


def test_klom_by_hand():
    """Margins 0 and 19.9 make the 20 bins; the largest margin belongs to the last one."""
    unlearned = np.array([[0.0], [0.0], [10.0], [20.0]])
    retrained = np.array([[0.0], [20.0], [20.0], [20.0]])
    q = np.array([0.25, 1e-5, 0.75]) / (1 + 1e-5)
    expected = 0.5 * np.log(0.5 / q[0]) + 0.25 * np.log(0.25 / q[1]) + 0.25 * np.log(0.25 / q[2])
    assert klom(unlearned, retrained)[0] == pytest.approx(expected)
    other = 0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.25)
    assert klom(unlearned, retrained, "retrained_unlearned")[0] == pytest.approx(other), "no bin of P is empty in Q"


def test_klom_range_direction_and_invariances():
    u, r = margins(seed=1), margins(seed=2)
    found = klom(u, r)
    assert found.shape == (30,) and (found >= 0).all() and klom(u, u).max() < 1e-12
    assert (klom(u + 4, r) > found).all() and klom(u + 4, r).max() <= -math.log(1e-5) + 0.1
    assert klom(3 * u + 5, 3 * r + 5) == pytest.approx(found), "bins follow a common change of scale and origin"
    assert klom(u[::-1], r[::-1]) == pytest.approx(found)
    assert (klom(np.ones((5, 2)), np.ones((4, 2))) == 0).all(), "one value only"
    assert np.isfinite(klom(np.full((5, 2), np.inf), r[:, :2])).all(), "clipped to 100"
    summary = klom_summary(u, r)
    assert summary["mean"].value == pytest.approx(found.mean()) and summary["mean"].n == 30
    p95 = summary["p95"]
    assert p95.value == pytest.approx(np.percentile(found, 95)) and p95.low <= p95.value <= p95.high


# ---- U-LiRA ----


def test_u_lira_by_hand():
    u, r, target = margins(20, 2, 1.0, seed=3), margins(25, 2, seed=4), margins(5, 2, seed=5)
    found = u_lira(target, u, r)
    logs = [stats.norm(side[:, 1].mean(), side[:, 1].std(ddof=1)).logpdf(target[3, 1]) for side in (u, r)]
    assert found.shape == (5, 2) and found[3, 1] == pytest.approx(logs[0] - logs[1])
    few = u_lira(target, u[:5], r[:6])
    logs = [
        stats.norm(side[:, 0].mean(), np.sqrt(side.var(0, ddof=1).mean())).logpdf(target[2, 0])
        for side in (u[:5], r[:6])
    ]
    assert few[2, 0] == pytest.approx(logs[0] - logs[1]), "few models: one spread for all samples"
    summary = u_lira_summary(u, r)
    judged = u_lira(u[1::2], u[::2], r[::2]) > 0, u_lira(r[1::2], u[::2], r[::2]) <= 0
    assert summary["accuracy"].value == pytest.approx((judged[0].mean() + judged[1].mean()) / 2)


@pytest.mark.parametrize("models", [4, 40])
def test_u_lira_is_at_chance_for_equal_sets_of_any_size_and_its_interval_knows_that_models_differ(models):
    """A shift a model: its answers to all samples move together, so they are no independent decisions."""
    hits, values = [], []
    for seed in range(60):
        draw = np.random.default_rng([seed, models])
        u, r = (draw.normal(size=(models, 100)) + draw.normal(size=(models, 1)) for _ in range(2))
        summary = u_lira_summary(u, r)
        hits.append([summary[key].low <= 0.5 <= summary[key].high for key in ("accuracy", "auc")])
        values.append(summary["accuracy"].value)
    assert np.mean(values) == pytest.approx(0.5, abs=0.07 if models == 4 else 0.03)
    assert models == 4 or (np.mean(hits, 0) > 0.85).all()


def test_u_lira_accuracy_is_that_of_the_best_rule_for_two_gaussians():
    """Equal spreads, means d apart: no rule is right more often than Phi(d / 2)."""
    apart = u_lira_summary(margins(200, 100, 2.0, seed=7), margins(200, 100, seed=8))
    assert apart["accuracy"].value == pytest.approx(stats.norm.cdf(1), abs=0.02)
    assert apart["auc"].value == pytest.approx(stats.norm.cdf(2 / np.sqrt(2)), abs=0.02)
    assert apart["accuracy"].n == 100 and apart["accuracy"].low < apart["accuracy"].value < apart["accuracy"].high
    wide = u_lira_summary(margins(200, 100, 0.0, 5.0, seed=9), margins(200, 100, seed=10))
    assert wide["accuracy"].low > 0.7, "same mean, other spread: the likelihood sees it, a threshold would not"


# ---- forgetting quality ----


def grid_epsilon(unlearned, retrained):
    """The competition's procedure, word by word: 100 thresholds a unit, both families of rules."""
    high, low = (retrained, unlearned) if np.median(retrained) > np.median(unlearned) else (unlearned, retrained)
    span = np.ptp(high), np.ptp(low)
    if min(span) / max(span) < 0.01:
        return 50.0
    everything = np.concatenate([high, low])
    cuts = np.linspace(everything.min(), everything.max(), math.ceil(np.ptp(everything) * 100))
    rates = [((low >= t).mean(), (high < t).mean()) for t in cuts]
    narrow, wide = (low, high) if span[0] >= span[1] else (high, low)
    width = np.ptp(narrow)
    first, last = narrow.min() + width - 2, narrow.max() + 2
    for right in np.linspace(first, last, math.ceil((last - first) * 100)):
        for left in np.linspace(right - width - 2, right - width + 2, 400):
            inside = [((s >= left) & (s <= right)).mean() for s in (narrow, wide)]
            rates.append((inside[1], 1 - inside[0]))
    best = 0.0
    for fpr, fnr in set(rates):
        if fpr == fnr == 0:
            return 50.0
        if fpr * fnr > 0:
            with np.errstate(invalid="ignore"):
                best = np.nanmax([best, np.log(1 - 1e-5 - fpr) - np.log(fnr), np.log(1 - 1e-5 - fnr) - np.log(fpr)])
    return min(best, 50.0)


@pytest.mark.parametrize(("shift", "spread"), [(0.0, 1.0), (0.7, 1.0), (0.0, 0.3)])
def test_epsilon_is_the_competitions_up_to_its_grid(shift, spread):
    u, r = margins(24, 2, shift, spread, seed=11), margins(24, 2, seed=12)
    found = forgetting_epsilon(u, r)
    for i in range(2):
        expected = grid_epsilon(u[:, i], r[:, i])
        assert found[i] >= expected - 1e-9, "all rules contain those of the grid"
        assert found[i] == pytest.approx(expected, abs=0.15)


def test_epsilon_by_hand():
    """Thresholds only can help here: 1 of 4 on the wrong side each way, FPR = FNR = 1/4."""
    u, r = np.array([[0.0], [10.0], [11.0], [12.0]]), np.array([[1.0], [2.0], [3.0], [10.5]])
    assert forgetting_epsilon(u, r)[0] >= math.log(0.75 - 1e-5) - math.log(0.25)
    apart = forgetting_epsilon(np.array([[0.0], [0.5], [1.0]]), np.array([[2.0], [2.7], [3.0]]))
    assert apart.tolist() == [50.0], "perfect separation is capped"
    point = forgetting_epsilon(np.full((4, 1), 1.0), np.array([[0.0], [1.0], [2.0], [3.0]]))
    assert point.tolist() == [50.0], "a range of less than 1 % of the other is suspicious"
    assert forgetting_epsilon(np.ones((4, 1)), np.ones((4, 1))).tolist() == [0.0]


def test_epsilon_is_symmetric_and_does_not_depend_on_the_order_of_models():
    u, r = margins(30, 6, 0.5, seed=13), margins(30, 6, seed=14)
    found = forgetting_epsilon(u, r)
    assert forgetting_epsilon(r, u) == pytest.approx(found)
    assert forgetting_epsilon(u[::-1], r[::-1]) == pytest.approx(found)
    assert forgetting_epsilon(u + 7, r + 7) == pytest.approx(found)
    assert (found >= 0).all() and (found <= 50).all()


def test_quality_counts_points_in_buckets_of_a_half(monkeypatch):
    from hf_sharp_unlearn.metrics import forgetting_quality as function
    from hf_sharp_unlearn.metrics.forgetting_quality import forgetting_quality as original

    assert function is original
    import sys

    module = sys.modules["hf_sharp_unlearn.metrics.forgetting_quality"]
    epsilons = np.array([0.0, 0.49, 0.5, 1.2, 2.9, 3.0, 50.0])
    monkeypatch.setattr(module, "forgetting_epsilon", lambda u, r: epsilons)
    found = forgetting_quality(np.zeros((18, 7)), np.zeros((18, 7)))  # ceil(log 17) = 3: six buckets
    assert found.value == pytest.approx((1 + 1 + 1 / 2 + 1 / 4 + 1 / 32 + 0 + 0) / 7) and found.n == 7


def test_better_unlearning_has_a_higher_quality():
    r = margins(100, 40, seed=15)
    qualities = [forgetting_quality(margins(100, 40, shift, seed=16), r).value for shift in (0.0, 1.0, 3.0)]
    assert qualities[0] > 2 * qualities[1] > 4 * qualities[2] >= 0
    assert final_score(0.5, (0.9, 0.6), (1.0, 0.8)) == pytest.approx(0.5 * 0.9 * 0.75)
    with pytest.raises(ValueError, match="retrained=.1.0, 0.0."):
        final_score(0.5, (0.9, 0.6), (1.0, 0.0))


@pytest.mark.parametrize("metric", [klom, u_lira_summary, forgetting_epsilon])
def test_sets_that_do_not_fit_are_refused(metric):
    good = margins(5, 3)
    for pair in ((good, margins(5, 4)), (good[0], good), (good[:, :0], good[:, :0])):
        with pytest.raises(ValueError, match="need .models, N."):
            metric(*pair)
    with pytest.raises(ValueError, match="nan"):
        metric(good, np.full((5, 3), np.nan))
    if metric is not klom:
        with pytest.raises(ValueError, match="2 unlearned and 5 retrained models: need at least"):
            metric(good[:2], good)
    else:
        with pytest.raises(ValueError, match="direction='x'"):
            metric(good, good, "x")
