"""What the logits say of a sample: against formulas in float64, at the edges, and what is refused."""

import numpy as np
import pytest
import torch

from hf_sharp_unlearn.metrics import Outputs, sample_scores
from hf_sharp_unlearn.metrics import scores as module


def by_hand(z: np.ndarray, y: int) -> dict[str, float]:
    """The definitions, word by word, in float64."""
    p = np.exp(z - z.max())
    p = p / p.sum()
    others = [i for i in range(len(z)) if i != y]
    return {
        "loss": -np.log(p[y]),
        "correct": float(z.argmax() == y),
        "confidence": p[y],
        "max_confidence": p.max(),
        "entropy": -sum(q * np.log(q) for q in p),
        "modified_entropy": -(1 - p[y]) * np.log(p[y]) - sum(p[i] * np.log(1 - p[i]) for i in others),
        "margin": np.log(p[y]) - np.log(1 - p[y]),
    }


def test_scores_equal_their_formulas():
    draw = np.random.default_rng(0)
    z, y = draw.normal(size=(50, 7)) * 2, draw.integers(7, size=50)
    found = sample_scores(torch.tensor(z), torch.tensor(y))
    assert set(found) == set(module.SCORES)
    for i in range(50):
        for name, value in by_hand(z[i], y[i]).items():
            assert found[name][i].item() == pytest.approx(value, rel=2e-5, abs=1e-6), name


def test_modified_entropy_depends_on_the_label_where_public_code_does_not():
    """Song & Mittal: 0 for confident and right, large for confident and wrong. The code released with SalUn writes the
    (1 - p) form into every column that is a label of *some* sample, so there all four samples would be alike."""
    z = torch.tensor([[6.0, 0.0, 0.0], [6.0, 0.0, 0.0], [6.0, 0.0, 0.0], [0.0, 0.0, 6.0]])
    y = torch.tensor([0, 1, 2, 2])
    found = sample_scores(z, y)["modified_entropy"]
    assert found[0] < 0.01 and found[3] < 0.01
    assert found[1] > 5 and found[1] == pytest.approx(found[2])
    assert sample_scores(z, y)["entropy"].std() < 1e-5, "entropy cannot tell them apart"
    for row, label in ((0, 0), (1, 1)):
        assert found[row] == pytest.approx(by_hand(z[row].double().numpy(), label)["modified_entropy"], rel=1e-4)
    alone = [sample_scores(z[i : i + 1], y[i : i + 1])["modified_entropy"].item() for i in range(4)]
    assert alone == pytest.approx(found.tolist()), "a sample's value does not depend on the others of the batch"


def test_a_constant_added_to_the_logits_and_the_order_of_samples_and_classes_change_nothing():
    draw = torch.Generator().manual_seed(1)
    z, y = torch.randn(20, 5, generator=draw), torch.randint(5, (20,), generator=draw)
    found = sample_scores(z, y)
    rows, classes = torch.randperm(20, generator=draw), torch.randperm(5, generator=draw)
    shifted, shuffled = sample_scores(z + 3, y), sample_scores(z[rows], y[rows])
    renamed = sample_scores(z[:, classes], classes.argsort()[y])
    for name in module.SCORES:
        assert torch.allclose(found[name], shifted[name], atol=1e-5)
        assert torch.equal(found[name][rows], shuffled[name])
        assert torch.allclose(found[name], renamed[name], atol=1e-6)


def test_ranges_and_directions():
    z, y = torch.randn(500, 4, generator=torch.Generator().manual_seed(2)) * 5, torch.arange(500) % 4
    found = sample_scores(z, y)
    for name, low, high in (
        ("loss", 0, np.inf),
        ("correct", 0, 1),
        ("confidence", 0, 1),
        ("max_confidence", 0.25, 1),
        ("entropy", 0, np.log(4) + 1e-5),
        ("modified_entropy", 0, np.inf),
    ):
        assert low <= found[name].min() and found[name].max() <= high, name
    order = found["margin"].argsort()
    assert (found["loss"][order].diff() <= 1e-5).all(), "the loss falls as the margin rises"


def test_saturated_logits_keep_their_order_in_the_margin():
    z = torch.tensor([[100.0, 0.0], [200.0, 0.0], [0.0, 300.0]])
    found = sample_scores(z, torch.zeros(3, dtype=torch.long))
    assert found["confidence"][:2].tolist() == [1, 1] and found["loss"][:2].tolist() == [0, 0]
    assert found["margin"].tolist() == [100, 200, -300]
    assert found["modified_entropy"][:2].tolist() == [0, 0] and found["modified_entropy"][2] > 500


def test_logits_of_minus_infinity_are_classes_ruled_out():
    z = torch.tensor([[1.0, -torch.inf, 0.0]])
    found = sample_scores(z, torch.tensor([0]))
    assert found["confidence"].item() == pytest.approx(by_hand(np.array([1.0, 0.0]), 0)["confidence"])
    assert found["entropy"].item() == pytest.approx(by_hand(np.array([1.0, 0.0]), 0)["entropy"])
    ruled_out = sample_scores(z, torch.tensor([1]))
    assert ruled_out["loss"].item() == np.inf and ruled_out["margin"].item() == -np.inf
    assert not any(value.isnan().any() for value in ruled_out.values())


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        (torch.tensor([[1.0, torch.nan]]), torch.tensor([0]), ["1 of 1", "nan"]),
        (torch.tensor([[1.0, torch.inf], [0.0, 0.0]]), torch.tensor([0, 1]), ["1 of 2", "+inf", "diverged"]),
        (torch.full((2, 2), -torch.inf), torch.tensor([0, 1]), ["2 of 2", "every class"]),
        (torch.zeros(3, 2), torch.tensor([0, 1, 2]), ["[0, 2]", "2 classes"]),
        (torch.zeros(3, 2), torch.tensor([0, -1, 1]), ["[-1, 1]"]),
        (torch.zeros(3, 1), torch.zeros(3, dtype=torch.long), ["two classes"]),
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.long), ["(3, 2)", "(2,)"]),
    ],
)
def test_refuses(logits, labels, words):
    with pytest.raises(ValueError) as raised:
        sample_scores(logits, labels)
    for word in words:
        assert word in str(raised.value)


def test_chunks_do_not_change_the_result(monkeypatch):
    z, y = torch.randn(30, 5, generator=torch.Generator().manual_seed(3)), torch.arange(30) % 5
    whole = sample_scores(z, y)
    monkeypatch.setattr(module, "CHUNK", 35)  # seven rows
    assert all(torch.equal(whole[name], value) for name, value in sample_scores(z, y).items())
    empty = sample_scores(z[:0], y[:0])
    assert all(len(value) == 0 for value in empty.values())


def test_outputs_from_arrays_and_a_part_of_them():
    z = np.random.default_rng(4).normal(size=(6, 3))
    outputs = Outputs.from_logits(z, [0, 1, 2, 0, 1, 2], np.arange(12).reshape(6, 2))
    assert len(outputs) == 6 and outputs.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert outputs.predictions.tolist() == z.argmax(1).tolist()
    part = outputs.take(np.array([4, 1]))
    assert part.labels.tolist() == [1, 1] and part.features.tolist() == [[8, 9], [2, 3]]
    assert part.loss.tolist() == outputs.loss[[4, 1]].tolist()
    with pytest.raises(ValueError, match="features has 5 rows, labels has 6"):
        Outputs.from_logits(z, [0, 1, 2, 0, 1, 2], np.zeros((5, 2)))
