"""Membership inference: rates by hand and against scikit-learn, chance and overfitting, shadow models."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score
from sklearn.svm import SVC
from torch import nn

from hf_sharp_unlearn.analysis import fine_tune
from hf_sharp_unlearn.metrics import (
    Outputs,
    Unavailable,
    attack_rates,
    auc,
    collect_outputs,
    lira,
    logistic_attack,
    loss_attack,
    loss_score,
    rmia,
    roc_curve,
    svc_efficacy,
    svc_judgements,
    tpr_at_fpr,
)
from hf_sharp_unlearn.metrics.mia import balanced_rows


class Wide(nn.Module):
    """Wide enough to learn 200 random labels by heart."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 4))

    def forward(self, x, labels):
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def noise(count: int, seed: int) -> list[dict]:
    """Images without meaning, labels without reason: what is right about them was learned by heart."""
    draw = torch.Generator().manual_seed(seed)
    x, y = torch.randn(count, 20, generator=draw), torch.randint(4, (count,), generator=draw)
    return [{"x": x[i], "labels": int(y[i])} for i in range(count)]


@pytest.fixture(scope="module")
def world():
    """Outputs by split of a model trained on retain and forget samples, and of one retrained on retain samples
    alone."""
    sets = {"retain": noise(150, 1), "forget": noise(100, 2), "test": noise(200, 3)}
    found = {}
    for name, data in (("overfitted", sets["retain"] + sets["forget"]), ("retrained", sets["retain"])):
        model = fine_tune(Wide(), data, 250, learning_rate=5e-3, batch_size=64, progress=False)
        found[name] = {split: collect_outputs(model, rows, progress=False) for split, rows in sets.items()}
    assert found["overfitted"]["forget"].correct.mean() > 0.95
    return found


def contains(estimate, value):
    return estimate.low <= value <= estimate.high


def test_every_attack_is_at_chance_on_a_model_that_never_saw_the_forget_set_and_far_above_on_an_overfitted_one(world):
    retrained, overfitted = world["retrained"], world["overfitted"]
    rates = {name: loss_attack(m["forget"], m["test"]) for name, m in world.items()}
    assert contains(rates["retrained"]["auc"], 0.5) and rates["overfitted"]["auc"].low > 0.9
    assert contains(rates["retrained"]["tpr@1%"], 0.01) and rates["overfitted"]["tpr@1%"].value > 0.05
    logistic = {name: logistic_attack(m["forget"], m["test"]) for name, m in world.items()}
    assert contains(logistic["retrained"], 0.5) and logistic["overfitted"].low > 0.75
    for name in ("confidence", "modified_entropy", "probabilities", "correctness"):
        judged = {}
        for model, splits in world.items():
            judged[model] = svc_efficacy(*svc_judgements(splits["retain"], splits["test"], splits["forget"]))
        found = {model: values[f"svc_{name}"] for model, values in judged.items()}
        assert found["overfitted"].high < found["retrained"].low, f"{name}: a remembered sample is taken for a member"
        test = svc_judgements(retrained["retain"], retrained["test"], retrained["test"])[0][name].mean()
        assert abs(found["retrained"].value - test) < 0.2, f"{name}: forgotten samples are judged as test samples are"
    assert overfitted["forget"].loss.mean() < 0.2 < retrained["forget"].loss.mean()


def test_auc_by_hand_with_ties_and_against_scikit_learn():
    assert auc([3, 1], [2, 1]).value == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    draw = np.random.default_rng(0)
    a, b = draw.integers(6, size=60), draw.integers(5, size=45)
    found = auc(a, b)
    assert found.value == pytest.approx(roc_auc_score([1] * 60 + [0] * 45, np.concatenate([a, b])))
    assert found.n == 45 and auc(b, a).value == pytest.approx(1 - found.value)
    assert auc(np.exp(a), np.exp(b)).value == pytest.approx(found.value), "only the order counts"
    order = draw.permutation(60)
    assert auc(a[order], b) == found


def test_the_auc_interval_covers_the_truth_about_95_times_in_100():
    draw = np.random.default_rng(1)
    truth = stats.norm.cdf(1 / np.sqrt(2))
    hits = [contains(auc(draw.normal(1, 1, 60), draw.normal(0, 1, 80)), truth) for _ in range(400)]
    assert 0.91 < np.mean(hits) < 0.99


def test_perfect_separation_has_an_interval_of_some_width():
    found = auc([2.0, 3.0, 4.0], [0.0, 1.0])
    assert found.value == 1 and found.low < 1 == found.high
    assert auc([0.0, 1.0], [2.0, 3.0]).low == 0 < auc([0.0, 1.0], [2.0, 3.0]).high
    same = auc([1.0] * 5, [1.0] * 5)
    assert same.value == 0.5, "identical scores are chance"
    assert auc([1.0], [0.0]).low is None, "one sample a side has no interval"


def test_tpr_at_fpr_by_hand_and_never_beyond_the_rate():
    others = np.arange(100.0)
    assert tpr_at_fpr([99.5, 98.5, 98.0, 0.0], others, 0.01).value == 0.5, "one of 100 may lie above: beat 98"
    assert tpr_at_fpr([200.0], others, 0.01).value == 1
    draw = np.random.default_rng(2)
    for _ in range(20):
        members, others = draw.integers(30, size=70), draw.integers(28, size=130)
        fpr, tpr = roc_curve(members, others)
        for rate in (0.01, 0.05, 0.2):
            assert tpr_at_fpr(members, others, rate).value == pytest.approx(tpr[fpr <= rate].max())
    with pytest.raises(Unavailable, match="at least 1000 non-members, there are 999"):
        tpr_at_fpr(members, np.arange(999), 0.001)
    assert tpr_at_fpr(members, np.arange(1000), 0.001).n == 70


def test_the_roc_curve_rises_from_0_0_to_1_1():
    fpr, tpr = roc_curve([1.0, 2.0, 2.0], [2.0, 0.0])
    assert fpr.tolist() == [0, 0.5, 0.5, 1] and tpr.tolist() == [0, 2 / 3, 1, 1]


def test_attack_rates_say_what_so_few_samples_cannot_show():
    rates = attack_rates(np.arange(50.0), np.arange(120.0))
    assert rates["tpr@1%"].n == 50 and "1000" in rates["tpr@0.1%"].reason
    with pytest.raises(Unavailable, match="0 and 3"):
        auc([], [1, 2, 3])
    with pytest.raises(ValueError, match="nan"):
        auc([np.nan], [1.0])


def test_the_svc_is_that_of_the_published_attack(world):
    """C = 3, gamma = auto, RBF, members labelled 1; the value is the share of the forget set judged 0."""
    splits = world["overfitted"]
    judged, side = svc_judgements(splits["retain"], splits["test"], splits["forget"], seed=4)
    assert side == 150 and judged["confidence"].shape == (100,)
    draw = np.random.default_rng([4, 7])
    rows = balanced_rows(splits["retain"], 150, draw), balanced_rows(splits["test"], 150, draw)
    x = np.concatenate([splits["retain"].confidence[rows[0]], splits["test"].confidence[rows[1]]])[:, None]
    attacker = SVC(C=3, gamma="auto").fit(x, [1] * 150 + [0] * 150)
    assert (judged["confidence"] == (attacker.predict(splits["forget"].confidence[:, None]) == 0)).all()
    again = svc_judgements(splits["retain"], splits["test"], splits["forget"], seed=4)[0]
    assert all((judged[name] == again[name]).all() for name in judged), "same seed, same result"
    assert svc_judgements(splits["retain"], splits["test"], splits["forget"], samples=30)[1] == 30
    with pytest.raises(Unavailable, match="two retain and two test samples, has 150 and 1"):
        svc_judgements(splits["retain"], splits["test"].take([0]), splits["forget"])


def test_members_are_drawn_balanced_over_classes():
    labels = np.repeat([0, 1, 2], [90, 9, 30])
    outputs = Outputs.from_logits(np.zeros((129, 3)), labels)
    rows = balanced_rows(outputs, 60, np.random.default_rng(0))
    assert np.bincount(labels[rows]).tolist() in ([26, 9, 25], [25, 9, 26]), "as even as the classes allow"
    assert len(set(rows)) == 60 and (np.diff(rows) > 0).all()


def test_lira_by_hand():
    shadows = np.array([[0.0, 1.0], [2.0, 3.0], [10.0, 1.0], [12.0, 5.0]])
    member = np.array([[False, False], [False, True], [True, False], [True, True]])
    target = np.array([10.0, 2.0])
    found = lira(target, shadows, member, shared=False)
    inside = [stats.norm(11, np.sqrt(2)), stats.norm(4, np.sqrt(2))]
    outside = [stats.norm(1, np.sqrt(2)), stats.norm(1, 1e-6)]
    assert found[0] == pytest.approx(inside[0].logpdf(10) - outside[0].logpdf(10))
    assert found[1] == pytest.approx(inside[1].logpdf(2) - outside[1].logpdf(2))
    offline = lira(target, shadows[:2], shared=False)
    assert offline == pytest.approx([(10 - 1) / np.sqrt(2), (2 - 2) / np.sqrt(2)])
    with pytest.raises(ValueError, match="1 samples have no shadow model that was not trained on it"):
        lira(target, shadows, np.array([[True, False]] * 4))
    with pytest.raises(ValueError, match="need .N,., .S, N., .S, N."):
        lira(target, shadows[:, :1])


def test_lira_knows_a_hard_sample_from_a_member_where_the_loss_does_not():
    """Half of the samples are easy for every model. Their high margin is no sign of membership."""
    draw = np.random.default_rng(5)
    easy = np.tile([0.0, 8.0], 200)
    member = draw.random((32, 400)) < 0.5
    shadows = easy + 2 * member + draw.normal(size=(32, 400))
    truth = draw.random(400) < 0.5
    target = easy + 2 * truth + draw.normal(size=400)
    plain = auc(target[truth], target[~truth]).value
    scores = lira(target, shadows, member)
    assert auc(scores[truth], scores[~truth]).low > plain + 0.1
    out = np.where(member, np.nan, shadows)
    offline = lira(target, np.stack([draw.permutation(c[~np.isnan(c)])[:8] for c in out.T], 1))
    assert auc(offline[truth], offline[~truth]).low > plain + 0.1
    assert lira(target + 1, shadows + 1, member) == pytest.approx(scores), "a shift of everything changes nothing"


def test_rmia_by_hand_and_its_range():
    z, z_out = np.array([0.2, 0.5, 0.9, 0.9]), np.array([0.5, 0.5, 0.5, 0.9])
    a = 1.0  # the OUT mean is trusted: ratios are p / mean
    assert rmia([0.6, 0.1], [0.5, 0.5], z, z_out, a=a).tolist() == [0.75, 0.0], "1.2 beats 0.4, 1.0, 1.0; not 1.8"
    assert rmia([0.5], [0.5], z, z_out, a=a).tolist() == [0.75], "equal ratios count"
    assert rmia([0.5], [0.5], z, z_out, a=a, gamma=1.2).tolist() == [0.25]
    mean = (1 + 0.3) / 2 * 0.5 + (1 - 0.3) / 2
    wide = rmia([0.6], [0.5], z, z_out)
    assert wide.tolist() == [np.mean(0.6 / mean >= z / ((1 + 0.3) / 2 * z_out + 0.35))]
    with pytest.raises(ValueError, match="a=2"):
        rmia([0.5], [0.5], z, z_out, a=2)


def test_logistic_attack_needs_a_sample_a_fold():
    outputs = Outputs.from_logits(np.zeros((4, 2)), [0, 1, 0, 1])
    with pytest.raises(Unavailable, match="5 forget and test samples, has 4 and 4"):
        logistic_attack(outputs, outputs)
    same = Outputs.from_logits(np.zeros((40, 2)), [0, 1] * 20)
    assert contains(logistic_attack(same, same), 0.5), "identical losses: chance"


def test_statistics_that_are_the_same_for_all_samples_are_absent():
    same = Outputs.from_logits(np.zeros((40, 2)), [0, 1] * 20)
    judged, side = svc_judgements(same, same, same)
    found = svc_efficacy(judged, side)
    for name in ("confidence", "entropy", "modified_entropy", "probabilities"):
        assert "same for all samples" in found[f"svc_{name}"].reason


def test_token_models_are_attacked_by_their_loss():
    """Means of margins over tokens do not keep the order of mean losses."""
    outputs = Outputs.from_logits(np.zeros((2, 2)), [0, 1])
    tokens = dataclasses.replace(outputs, logits=None, loss=np.array([0.6, 0.4]), margin=np.array([5.3, 1.1]))
    assert loss_score(tokens).tolist() == [-0.6, -0.4]
    assert loss_score(outputs).tolist() == outputs.margin.tolist()
