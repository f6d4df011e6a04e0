"""The ways to compute what a perturbation changes: each does what its name says."""

import csv

import pytest
import torch

from hf_sharp_unlearn import SAM
from hf_sharp_unlearn.benchmarks import precision


def test_rounding_to_the_grid_is_to_the_nearest_or_unbiased():
    value = torch.full((200, 200), 1 + 2**-9)  # a quarter of the way from 1 to the next number of bf16
    assert (precision.rounded([value])[0] == 1).all()
    torch.manual_seed(0)
    (drawn,) = precision.rounded([value], random=True)
    assert set(drawn.unique().tolist()) == {1, 1 + 2**-7}
    assert drawn.double().mean() == pytest.approx(1 + 2**-9, abs=1e-4)
    vector = torch.full((4,), 1 + 2**-9)
    assert torch.equal(precision.rounded([vector])[0], vector), "vectors are not operands of products"


def test_a_linear_gradient_changes_by_the_same_in_every_exact_way():
    """Loss 0.5 || A w ||^2 with numbers that bf16 holds: the larger radius is exact too, and rounding the only loss."""
    layer = torch.nn.Linear(4, 4, bias=False)
    torch.nn.init.eye_(layer.weight)
    gradients = precision.Gradients(layer, lambda: 0.5 * layer(torch.eye(4)).float().square().sum())
    found = precision.compare(gradients, SAM(0.5))
    for way in ("radius x2 fp32", "radius x4 fp32", "autocast", "radius x2", "weights", "stochastic"):
        assert found[way] == pytest.approx((1, 1), abs=1e-6), way
    assert found["felt"] == pytest.approx((1, 1)) and found["share"] == pytest.approx((1, 0.25))
    assert torch.equal(layer.weight, torch.eye(4))


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(precision, "PERTURBATIONS", precision.PERTURBATIONS[:1])
    precision.main(["--models", "llama-small", "--seeds", "1", "--train-steps", "1", "--output-dir", str(tmp_path)])
    assert "cosine with the change in fp32" in capsys.readouterr().out
    with open(tmp_path / "precision.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert {row["way"] for row in rows} >= {"autocast", "grid", "stochastic", "radius x4 fp32"}
