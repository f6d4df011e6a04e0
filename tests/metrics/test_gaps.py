"""Two models on the same samples: intervals of differences and of scores made of them, agreement, divergence."""

import math

import numpy as np
import pytest

from hf_sharp_unlearn import tug_of_war
from hf_sharp_unlearn.metrics import Outputs, jensen_shannon, prediction_agreement
from hf_sharp_unlearn.metrics.estimate import wilson
from hf_sharp_unlearn.metrics.gaps import of_gaps, paired_gap


def test_the_interval_of_tug_of_war_covers_a_perfect_score_and_a_true_gap():
    """Two models with the same true accuracy, or 10 points apart on the forget set, and independent errors."""
    for gap in (0.0, 0.1):
        hits = []
        for seed in range(40):
            draw = np.random.default_rng(seed)
            pairs = {s: [draw.random(300) < p for p in (0.7 - (gap if s == "forget" else 0), 0.7)]
                     for s in ("retain", "forget", "test")}  # fmt: skip
            gaps = {split: paired_gap(*(flags.astype(float) for flags in pair)) for split, pair in pairs.items()}
            found = of_gaps(gaps, tug_of_war)
            hits.append(found.low <= 1 - gap <= found.high)
            assert found.low <= found.value <= found.high <= 1
        assert np.mean(hits) > 0.9


def test_the_paired_interval_is_newcombes():
    """Method 10 of Newcombe 1998 (Stat. Med. 17, 2635), its formula in other words: limits around the difference from
    Wilson's limits and the correlation phi of the 2 x 2 table."""
    one, other = np.repeat([1.0, 1.0, 0.0, 0.0], [20, 12, 4, 14]), np.repeat([1.0, 0.0, 1.0, 0.0], [20, 12, 4, 14])
    gap = paired_gap(one, other)
    assert gap.one - gap.other == pytest.approx(0.16) and gap.n == 50
    phi = (20 * 14 - 12 * 4) / math.sqrt(32 * 18 * 24 * 26)
    (l1, u1), (l2, u2) = wilson(0.64, 50), wilson(0.48, 50)
    low = 0.16 - math.sqrt((0.64 - l1) ** 2 - 2 * phi * (0.64 - l1) * (u2 - 0.48) + (u2 - 0.48) ** 2)
    high = 0.16 + math.sqrt((u1 - 0.64) ** 2 - 2 * phi * (u1 - 0.64) * (0.48 - l2) + (0.48 - l2) ** 2)
    assert gap.interval(1.959964) == pytest.approx((low, high), abs=1e-6)


def test_models_that_saw_other_samples_are_refused():
    z = np.zeros((3, 2))
    one, other = Outputs.from_logits(z, [0, 1, 0]), Outputs.from_logits(z, [0, 1, 1])
    for metric in (prediction_agreement, jensen_shannon):
        with pytest.raises(ValueError, match="different samples"):
            metric(one, other)
    wide = Outputs.from_logits(np.zeros((3, 4)), [0, 1, 0])
    with pytest.raises(ValueError, match="different classes"):
        jensen_shannon(one, wide)


def test_jensen_shannon_by_hand():
    p, q = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[0.25, 0.75], [0.0, 1.0]])
    with np.errstate(divide="ignore"):
        one, other = Outputs.from_logits(np.log(p), [0, 0]), Outputs.from_logits(np.log(q), [0, 0])

    def entropy(v):
        return -sum(x * math.log2(x) for x in v if x > 0)

    expected = [entropy((a + b) / 2) - (entropy(a) + entropy(b)) / 2 for a, b in zip(p, q, strict=True)]
    assert expected[1] == 1, "disjoint answers: one bit"
    assert jensen_shannon(one, other).value == pytest.approx(np.mean(expected), rel=1e-5)
    assert jensen_shannon(other, one).value == pytest.approx(np.mean(expected), rel=1e-5)
