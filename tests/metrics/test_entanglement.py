"""Entanglement: closed forms, hand-computed values, invariances, the released code's numbers, degenerate input."""

import numpy as np
import pytest

from hf_sharp_unlearn.metrics import Unavailable, class_method, class_wise, variance_entanglement, wasserstein
from hf_sharp_unlearn.metrics import entanglement as module


def gaussians(n=900, m=1100, seed=0):
    """N(0, I) and N((3, 0), diag(4, 1/4)) in the plane."""
    draw = np.random.default_rng(seed)
    return draw.normal(size=(n, 2)), draw.normal(size=(m, 2)) * [2, 0.5] + [3, 0]


def test_w2_of_two_gaussians_is_its_closed_form():
    """W_2^2 = ||m1 - m2||^2 + tr(S1 + S2 - 2 (S2^1/2 S1 S2^1/2)^1/2), for diagonal S the sum of (s1 - s2)^2."""
    truth = np.sqrt(9 + (2 - 1) ** 2 + (1 - 0.5) ** 2)
    for seed in range(3):
        found = wasserstein(*gaussians(seed=seed), p=2, method="exact", unit=False)
        assert found.value == pytest.approx(truth, rel=0.05) and found.low < truth < found.high
        assert "exact, 900 x 1100" in found.method and found.n == 900


def test_w1_and_w2_of_a_shift_are_its_length():
    x = np.random.default_rng(1).normal(size=(300, 3))
    for p in (1, 2):
        assert wasserstein(x, x + [3, 0, 4], p=p, unit=False).value == pytest.approx(5, rel=1e-9)
    a, b = np.array([[0.0], [1.0]]), np.array([[2.0], [5.0]])
    assert wasserstein(a, b, p=1, unit=False).value == pytest.approx((2 + 4) / 2)
    assert wasserstein(a, b, p=2, unit=False).value == pytest.approx(np.sqrt((4 + 16) / 2))


def test_sliced_w2_of_isotropic_gaussians_is_its_closed_form():
    """SW_2^2 = ||m||^2 / D + (s1 - s2)^2: each direction sees the part of the shift that lies along it."""
    draw = np.random.default_rng(2)
    x, y = draw.normal(size=(4000, 16)), 2 * draw.normal(size=(5000, 16)) + 2
    found = wasserstein(x, y, p=2, unit=False)
    assert found.method.startswith("sliced, 4000 x 5000"), "auto: too large for an exact plan"
    truth = np.sqrt(64 / 16 + 1)
    assert found.low < truth < found.high and found.value == pytest.approx(truth, rel=0.25)


def test_the_exact_interval_covers_the_mean_of_the_estimate():
    values = [wasserstein(*gaussians(120, 150, seed), p=2, unit=False) for seed in range(60)]
    centre = np.mean([v.value for v in values])
    assert 0.85 < np.mean([v.low <= centre <= v.high for v in values]) <= 1


@pytest.mark.parametrize("p", [1, 2])
def test_wasserstein_is_a_distance_of_sets(p):
    x, y = gaussians(80, 90)
    draw = np.random.default_rng(3)
    found = wasserstein(x, y, p=p, unit=False).value
    assert wasserstein(y, x, p=p, unit=False).value == pytest.approx(found)
    assert wasserstein(x[draw.permutation(80)], y, p=p, unit=False).value == pytest.approx(found)
    assert wasserstein(x * 3, y * 3, p=p, unit=False).value == pytest.approx(3 * found)
    assert wasserstein(x * 3, y * 5, p=p).value == pytest.approx(wasserstein(x, y, p=p).value), "unit length"
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    assert wasserstein(x @ turn, y @ turn, p=p, unit=False).value == pytest.approx(found)
    assert wasserstein(x, x, p=p, unit=False).value == pytest.approx(0, abs=1e-6)
    assert wasserstein(x, x, p=p).value <= wasserstein(x, y, p=p).value <= 2


def by_hand(forget, retain):
    mu_f, mu_r = forget.mean(0), retain.mean(0)
    mu = np.concatenate([forget, retain]).mean(0)
    within = ((forget - mu_f) ** 2).sum(1).mean() + ((retain - mu_r) ** 2).sum(1).mean()
    return within / (0.5 * (((mu_r - mu) ** 2).sum() + ((mu_f - mu) ** 2).sum()))


def test_variance_entanglement_equals_its_formula_and_its_invariances():
    x, y = gaussians(70, 210)
    found = variance_entanglement(x, y, unit=False)
    assert found.value == pytest.approx(by_hand(x, y)) and found.low <= found.value <= found.high and found.n == 70
    unit = [s / np.linalg.norm(s, axis=1, keepdims=True) for s in (x, y)]
    assert variance_entanglement(x, y).value == pytest.approx(by_hand(*unit))
    assert variance_entanglement(7 * x, 7 * y, unit=False).value == pytest.approx(found.value)
    assert variance_entanglement(x[::-1], y[::-1], unit=False).value == pytest.approx(found.value)
    far = variance_entanglement(x, y + [50, 0], unit=False)
    assert far.value < found.value, "sets that lie apart are less entangled"
    same = np.random.default_rng(4).normal(size=(280, 2))
    mixed = variance_entanglement(same[:70], same[70:], unit=False)
    assert mixed.value > 20 * found.value and mixed.high > mixed.low
    wide = variance_entanglement(x.astype(np.float32), y.astype(np.float32), unit=False)
    assert wide.value == pytest.approx(found.value, rel=1e-4)


def test_the_released_codes_numbers():
    x, y = gaussians(50, 60)
    unit = [s / np.linalg.norm(s, axis=1, keepdims=True) for s in (x, y)]
    assert variance_entanglement(x, y, normalisation="released").value == pytest.approx(by_hand(*unit) / 1300)
    largest = np.linalg.norm(unit[0][:, None] - unit[1][None], axis=-1).max()
    found = wasserstein(x, y, normalisation="released")
    assert found.value == pytest.approx(1 - wasserstein(x, y, p=1).value / largest)
    assert 0 <= found.low <= found.value <= found.high <= 1 and "over their maximum" in found.method
    assert wasserstein(*gaussians(1500, 1200), normalisation="released").method.startswith("exact, 1000 x 1000")


def test_the_interval_of_e_var_covers_the_populations_value_which_the_estimate_misses():
    """Two unit Gaussians in 64 dimensions, 200 samples each: resampling as it stands would never cover the truth."""
    for shift in (0.25, 0.125):
        truth = (64 + 64) / (shift**2 * 64 / 4)
        found = []
        for seed in range(30):
            draw = np.random.default_rng(seed)
            x, y = draw.normal(size=(200, 64)), draw.normal(size=(200, 64)) + shift
            found.append(variance_entanglement(x, y, unit=False, seed=seed))
        assert np.mean([f.low <= truth <= f.high for f in found]) > 0.85
        assert np.mean([f.value for f in found]) < 0.9 * truth, "as the docstring says"


def test_class_wise_values_use_one_method_for_all_classes():
    assert class_method(np.zeros(900), np.zeros(1100)) == "exact"
    assert class_method(np.repeat([0, 1], [5, 1500]), np.repeat([0, 1], [5, 1500])) == "sliced"
    assert class_method(np.zeros(3), np.ones(3)) == "exact", "no class in common"


def test_equal_sets_are_entangled_completely_where_the_released_code_says_not_at_all():
    x = np.random.default_rng(5).normal(size=(30, 4))
    assert variance_entanglement(x, x).value == np.inf
    assert variance_entanglement(x, x, normalisation="released").value == 1
    assert variance_entanglement(np.ones((3, 2)), np.ones((4, 2))).value == np.inf, "identical features"
    assert wasserstein(np.ones((3, 2)), np.ones((4, 2))).value == 0
    assert wasserstein(np.ones((3, 2)), np.ones((4, 2)), normalisation="released").value == 1
    assert variance_entanglement(np.zeros((3, 2)), np.zeros((1, 2))).value == np.inf, "features of length 0"
    one = variance_entanglement(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))
    assert one.value == 0 and one.n == 1, "one sample a side, no spread: not entangled"


def test_class_wise_is_the_mean_over_common_classes_by_their_size():
    x, y = gaussians(60, 90)
    x_labels, y_labels = np.repeat([0, 1, 2], [30, 29, 1]), np.repeat([0, 1, 2], [40, 30, 20])
    found = class_wise(lambda a, b: wasserstein(a, b, unit=False), x, y, x_labels, y_labels)
    parts = [wasserstein(x[x_labels == c], y[y_labels == c], unit=False).value for c in (0, 1)]
    assert found.value == pytest.approx((70 * parts[0] + 59 * parts[1]) / 129), "class 2 has one forget sample only"
    assert "mean over 2 classes" in found.method and found.n == 59 and found.low < found.value < found.high
    with pytest.raises(Unavailable, match="no class has two samples in both sets"):
        class_wise(wasserstein, x, y, x_labels, y_labels + 5)
    with pytest.raises(Unavailable, match="no class"):
        class_wise(wasserstein, x, y, None, None)


@pytest.mark.parametrize("measure", [variance_entanglement, wasserstein])
def test_refuses(measure):
    x = np.ones((3, 2))
    for pair in ((x, np.ones((3, 4))), (x[:0], x), (x[:, :0], x[:, :0]), (np.ones(3), x)):
        with pytest.raises(ValueError, match="need features"):
            measure(*pair)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="nan or inf"):
            measure(x * bad, x)
    with pytest.raises(ValueError, match="normalisation='no'"):
        measure(x, x, normalisation="no")


def test_wasserstein_refuses_unknown_options():
    x = np.ones((3, 2))
    for options in ({"p": 3}, {"method": "guess"}, {"p": 2, "normalisation": "released"}):
        with pytest.raises(ValueError, match="p="):
            wasserstein(x, x, **options)


def test_the_seed_decides_what_is_drawn(monkeypatch):
    x, y = gaussians(200, 210)
    monkeypatch.setattr(module, "EXACT_PAIRS", 100)
    one, again, other = (wasserstein(x, y, seed=seed) for seed in (0, 0, 1))
    assert one == again and one.value != other.value
    assert variance_entanglement(x, y, seed=0) == variance_entanglement(x, y, seed=0)


def test_the_released_scale_keeps_ends_that_are_not_known():
    """The mean over a single class has no interval."""
    raw = module.Estimate(650.0, 5)
    found = module.released_scale(raw)
    assert found.value == 0.5 and found.low is None and found.high is None
    assert module.released_scale(module.Estimate(2600.0, 5, 130.0, 1e9)).high == 1
