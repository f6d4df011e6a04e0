"""The loss around a solution: against the dense Hessian and direct evaluation, directions, and weights that come
back."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from parts import LLAMA, BatchNormNet, Mlp, assert_same, images, rows, timm_resnet, weights_of
from torch import nn
from torch.func import functional_call
from transformers import LlamaConfig, LlamaForCausalLM

from hf_sharp_unlearn import ASAM, SAM
from hf_sharp_unlearn.analysis.landscape import Landscape
from hf_sharp_unlearn.analysis.landscape_comparison import compare_landscapes, draw_landscapes, landscape_numbers


def batch(data):
    return torch.stack([row["x"] for row in data]), torch.tensor([row["labels"] for row in data])


def loss_at(model, data, vector):
    """The mean loss at given weights, all in one vector."""
    x, y = batch(data)
    named, offset = {}, 0
    for name, weight in model.named_parameters():
        named[name] = vector[offset : offset + weight.numel()].view_as(weight)
        offset += weight.numel()
    return nn.functional.cross_entropy(functional_call(model, named, (x,))["logits"], y)


def flat(tensors):
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def test_the_top_eigenvalue_is_that_of_the_dense_hessian():
    model, data = Mlp(dtype=torch.float64), rows(40)
    data = [{**row, "x": row["x"].double()} for row in data]
    hessian = torch.autograd.functional.hessian(lambda v: loss_at(model, data, v), flat(model.parameters()))
    values = torch.linalg.eigvalsh(hessian)
    expected = values[values.abs().argmax()].item()
    value, residual, made = Landscape(model, data, batch_size=16).top_eigenvalue(iterations=300, tolerance=1e-9)
    assert value == pytest.approx(expected, rel=1e-4) and residual < 0.01 and made <= 300
    rough = Landscape(model, data).top_eigenvalue(iterations=3)
    assert rough[2] == 3 and abs(rough[0]) <= abs(expected) * (1 + 1e-9) and rough[1] > residual


def test_sharpness_is_the_rise_of_the_loss_after_one_ascent_step():
    model, data = Mlp(dtype=torch.float64), [{**row, "x": row["x"].double()} for row in rows(30)]
    landscape = Landscape(model, data, batch_size=7)
    start = flat(model.parameters()).requires_grad_()
    loss = loss_at(model, data, start)
    (grad,) = torch.autograd.grad(loss, start)
    moved = loss_at(model, data, start + 0.2 * grad / grad.norm())
    assert landscape.loss() == pytest.approx(loss.item())
    assert landscape.sharpness(SAM(rho=0.2)) == pytest.approx((moved - loss).item(), rel=1e-5)
    scale = start.detach().abs()
    moved = loss_at(model, data, start + 0.5 * scale**2 * grad / (scale * grad).norm())
    assert landscape.sharpness(ASAM(rho=0.5)) == pytest.approx((moved - loss).item(), rel=1e-5)
    assert landscape.sharpness(SAM(rho=0.0)) == 0


def test_the_surface_is_the_loss_at_shifted_weights_and_its_centre_the_models_loss():
    model, data = Mlp(), rows(25)
    landscape = Landscape(model, data, batch_size=10)
    surface = landscape.surface(points=5, reach=0.5, progress=False)
    assert surface.losses.shape == (5, 5) and surface.samples == 25
    assert surface.offsets[0].tolist() == [-0.5, -0.25, 0, 0.25, 0.5]
    assert surface.losses[2, 2] == pytest.approx(landscape.loss(), abs=1e-7)
    first, second = landscape._directions()
    vector = flat(model.parameters()) + 0.25 * flat(first) - 0.5 * flat(second)
    assert surface.losses[3, 0] == pytest.approx(loss_at(model, data, vector).item(), abs=1e-5)
    line = landscape.surface(points=5, reach=0.5, dimensions=1, progress=False)
    assert line.losses[:, 0] == pytest.approx(surface.losses[:, 2], abs=1e-7)


def test_directions_are_normalised_by_filter_orthogonal_and_the_same_draws_for_every_checkpoint():
    model = BatchNormNet()
    landscape = Landscape(model, rows(4, (1, 5, 5)))
    first, second = landscape._directions()
    for weight, d1, d2 in zip(model.parameters(), first, second, strict=True):
        if weight.ndim <= 1:
            assert not d1.any() and not d2.any(), "biases and normalisation weights stay"
            continue
        for d in (d1, d2):
            norms = [t.detach().reshape(len(t), -1).norm(dim=1) for t in (d, weight)]
            assert torch.allclose(*norms, rtol=1e-5)
        assert torch.allclose((d1 * d2).reshape(len(d1), -1).sum(1), torch.zeros(len(d1)), atol=1e-5)
    other = BatchNormNet(seed=1)
    scaled = Landscape(other, rows(4, (1, 5, 5)))._directions()[0]
    filters = [t.reshape(len(t), -1) for t in (first[0], scaled[0])]
    assert torch.allclose(nn.functional.cosine_similarity(*filters), torch.ones(4), atol=1e-5)
    different = Landscape(model, rows(4, (1, 5, 5)), seed=1)._directions()[0]
    assert not torch.allclose(first[0], different[0])


def test_a_surface_does_not_change_when_filters_are_rescaled_without_changing_the_function():
    """Two ReLU layers: the first times 10, the second by 10. Filter normalisation is made for this."""
    torch.manual_seed(0)
    small = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))

    class Wrapped(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x, labels):
            logits = self.net(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    one = Landscape(Wrapped(small), rows(20)).surface(points=3, progress=False).losses
    with torch.no_grad():
        small[0].weight.mul_(10)
        small[2].weight.div_(10)
    assert Landscape(Wrapped(small), rows(20)).surface(points=3, progress=False).losses == pytest.approx(one, rel=1e-4)


def everything(landscape):
    landscape.surface(points=3, progress=False)
    landscape.surface(points=3, dimensions=1, progress=False)
    landscape.sharpness(SAM(rho=0.1))
    landscape.top_eigenvalue(iterations=2)


@pytest.mark.parametrize("kind", ["batch norm", "timm", "llama"])
def test_weights_and_buffers_come_back_bit_for_bit(kind):
    torch.manual_seed(0)
    ids = torch.randint(3, 19, (6, 5))
    model, data = {
        "batch norm": (BatchNormNet(), rows(9, (1, 5, 5))),
        "timm": (timm_resnet(), images(9)),
        "llama": (LlamaForCausalLM(LlamaConfig(**LLAMA)), [{"input_ids": i, "labels": i} for i in ids]),
    }[kind]
    model.train()
    model(**{key: torch.stack([torch.as_tensor(row[key]) for row in data]) for key in data[0]})  # moves the statistics
    before = weights_of(model)
    everything(Landscape(model, data, batch_size=4))
    assert_same(before, weights_of(model))
    assert model.training and all(weight.grad is None for weight in model.parameters())


def test_weights_come_back_after_an_interrupt():
    class Interrupted(BatchNormNet):
        calls = 0

        def forward(self, x, labels=None):
            self.calls += 1
            if self.calls == 5:
                raise KeyboardInterrupt
            return super().forward(x, labels)

    for job in (
        lambda landscape: landscape.surface(points=5, progress=False),
        lambda landscape: [landscape.sharpness(SAM(rho=0.5)) for _ in range(3)],
        lambda landscape: landscape.top_eigenvalue(),
    ):
        model = Interrupted()
        before = weights_of(model)
        with pytest.raises(KeyboardInterrupt):
            job(Landscape(model, rows(6, (1, 5, 5))))
        assert_same(before, weights_of(model))


def test_a_flat_and_a_sharp_minimum_are_told_apart():
    """The same data and accuracy; one model has logits five times as steep."""
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    data = [{"x": row, "labels": int(row[0] > 0)} for row in x]
    surfaces = []
    for _ in range(2):
        model = Mlp()
        surfaces.append(model)
    with torch.no_grad():
        surfaces[1].second.weight.mul_(5)
    found = compare_landscapes(
        {"flat": surfaces[0], "sharp": surfaces[1]}, {"forget": data}, points=5, samples=40, progress=False
    )
    flat_one, sharp = (found[name]["forget"] for name in ("flat", "sharp"))
    assert sharp.sharpness > flat_one.sharpness > 0
    assert sharp.surface.summary["variability"] > flat_one.surface.summary["variability"]
    assert sharp.surface.samples == 40


def test_summary_by_hand_does_not_depend_on_the_grid():
    from hf_sharp_unlearn.analysis.landscape import Surface

    for points in (5, 9):
        axis = np.linspace(-1, 1, points)
        plane = Surface(2 + 3 * axis[:, None] + 4 * axis[None], (axis, axis), 7)
        assert plane.summary["centre"] == pytest.approx(2) and plane.summary["rise"] == pytest.approx(0)
        assert plane.summary["slope"] == pytest.approx(5), "per unit of the offsets, whatever their number"
        line = Surface(2 + 3 * axis[:, None], (axis, np.zeros(1)), 7)
        assert line.summary["slope"] == pytest.approx(3)
        assert line.summary["variability"] == pytest.approx(np.std(3 * axis))


def test_the_figures_and_the_numbers_are_written(tmp_path):
    found = compare_landscapes(
        {"one": Mlp(), "two": Mlp(seed=1)}, {"forget": rows(10), "test": rows(8, seed=1)}, points=3, progress=False
    )
    paths = draw_landscapes(found, str(tmp_path / "figures"))
    assert [path.rsplit("/")[-1] for path in paths] == ["surfaces.png", "slices.png"]
    for path in paths:
        with open(path, "rb") as file:
            assert file.read(8) == b"\x89PNG\r\n\x1a\n"
    numbers = landscape_numbers(found)
    assert numbers["two"]["test"]["samples"] == 8
    assert np.shape(numbers["one"]["forget"]["surface"]["losses"]) == (3, 3)
    assert len(numbers["one"]["forget"]["slice"]["losses"]) == 13


def test_losses_that_are_not_finite_are_gaps_in_the_figures_and_null_in_the_numbers(tmp_path):
    good = compare_landscapes({"one": Mlp()}, {"forget": rows(10)}, points=3, progress=False)["one"]["forget"]
    surface = dataclasses.replace(good.surface, losses=np.where(np.eye(3) > 0, np.inf, good.surface.losses))
    found = {"one": {"forget": dataclasses.replace(good, surface=surface)}, "two": {"forget": good}}
    assert len(draw_landscapes(found, str(tmp_path))) == 2
    numbers = landscape_numbers(found)
    assert numbers["one"]["forget"]["surface"]["losses"][0][0] is None
    assert numbers["one"]["forget"]["variability"] is None
    json.dumps(numbers, allow_nan=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"points": 4}, "points=4"), ({"points": 1}, "points=1"), ({"reach": 0}, "reach=0"), ({"dimensions": 3}, "=3")],
)
def test_surface_refuses(options, words):
    with pytest.raises(ValueError, match=words):
        Landscape(Mlp(), rows(3)).surface(**options)


def test_landscape_refuses():
    with pytest.raises(ValueError, match="dataset has 0 samples"):
        Landscape(Mlp(), [])
    with pytest.raises(ValueError, match="No label of the 3 samples counts"):
        Landscape(Mlp(), [{**row, "labels": -100} for row in rows(3)])
    with pytest.raises(ValueError, match="no trainable parameters"):
        Landscape(Mlp().requires_grad_(False), rows(3))
    with pytest.raises(ValueError, match="need at least one of each"):
        compare_landscapes({}, {"forget": rows(3)})
