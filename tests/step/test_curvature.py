"""Gauss-Newton products and conjugate gradients, against whole matrices."""

import pytest
import torch
from formulas import gauss_newton
from parts import Mlp, rows
from torch import nn

from hf_sharp_unlearn.step.curvature import conjugate_gradients, gauss_newton_product
from hf_sharp_unlearn.step.items import counted_items, distillation, logits_of


def batches(data, size):
    parts = [data[low : low + size] for low in range(0, len(data), size)]
    return [(torch.stack([r["x"] for r in part]), torch.tensor([r["labels"] for r in part])) for part in parts]


@pytest.mark.parametrize("size", [8, 3])
def test_a_product_is_the_matrix_times_the_vector_however_the_samples_are_batched(size):
    model, data = Mlp(dtype=torch.float64), rows(8)
    params = list(model.parameters())

    def forward(batch):
        return model(batch[0])["logits"], torch.ones(len(batch[0]), dtype=torch.bool)

    vector = [torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(1)) for p in params]
    found, count = gauss_newton_product(params, batches(data, size), forward)(vector)
    matrix = gauss_newton(data)
    wanted = matrix @ torch.cat([v.reshape(-1) for v in vector])
    assert count == 8
    torch.testing.assert_close(torch.cat([f.reshape(-1) for f in found]) / 8, wanted)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-12, "no negative curvature"


def test_items_that_are_not_counted_do_not_bend_the_loss():
    model, data = Mlp(dtype=torch.float64), rows(8)
    params = list(model.parameters())
    keep = torch.tensor([True, False] * 4)
    vector = [torch.ones_like(p) for p in params]
    half, count = gauss_newton_product(params, batches(data, 8), lambda b: (model(b[0])["logits"], keep))(vector)
    only = [row for row, kept in zip(data, keep, strict=True) if kept]
    whole, same = gauss_newton_product(
        params, batches(only, 4), lambda b: (model(b[0])["logits"], torch.ones(4, dtype=torch.bool))
    )(vector)
    assert count == same == 4
    for a, b in zip(half, whole, strict=True):
        torch.testing.assert_close(a, b)


def test_attention_and_unused_parameters():
    """Fused attention has no second derivative: the products choose the kernel that has one."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double()
    layer.spare = nn.Parameter(torch.ones(2, dtype=torch.float64))
    params = list(layer.parameters())
    x = torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    product = gauss_newton_product(params, [x], lambda b: (layer(b), torch.ones(3, 5, dtype=torch.bool)))
    image, count = product([torch.ones_like(p) for p in params])
    assert count == 15 and params[0] is layer.spare and not image[0].any()
    assert sum((i * torch.ones_like(i)).sum() for i in image) >= 0


def spd(size, seed=0):
    a = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return a @ a.T + 0.1 * torch.eye(size, dtype=torch.float64)


def test_conjugate_gradients_solve_and_say_how_well():
    matrix, target = spd(12), torch.arange(1.0, 13.0, dtype=torch.float64)
    apply = lambda v: list((matrix @ torch.cat(v)).split([5, 7]))  # noqa: E731
    x, residual, made = conjugate_gradients(apply, list(target.split([5, 7])), 200, 1e-12)
    torch.testing.assert_close(torch.cat(x), torch.linalg.solve(matrix, target))
    assert residual <= 1e-12 and made < 200
    lengths = []
    for iterations in range(1, 8):
        x, residual, made = conjugate_gradients(apply, list(target.split([5, 7])), iterations, 0.0)
        assert made == iterations
        found = (matrix @ torch.cat(x) - target).norm() / target.norm()
        assert residual == pytest.approx(found.item(), rel=1e-6)
        lengths.append(torch.cat(x).norm().item())
    assert lengths == sorted(lengths), "an early stop gives a shorter step"


def test_conjugate_gradients_of_zero_and_of_a_matrix_that_is_not_positive():
    x, residual, made = conjugate_gradients(lambda v: v, [torch.zeros(3)], 5, 0.0)
    assert not x[0].any() and residual == 0 and made == 0
    for bad in (-1.0, 0.0, float("nan")):
        with pytest.raises(FloatingPointError, match="raise the damping"):
            conjugate_gradients(lambda v, bad=bad: [bad * v[0]], [torch.ones(3)], 5, 0.0)


def test_logits_are_found_in_every_kind_of_output():
    logits = torch.rand(2, 3)
    for outputs in ({"logits": logits}, (torch.tensor(0.0), logits), type("Output", (), {"logits": logits})()):
        assert logits_of(outputs) is logits
    assert logits_of({"logits": logits.bfloat16()}).dtype == torch.float32
    for outputs in ({"loss": 1}, (logits,), None):
        with pytest.raises(ValueError, match="without `logits`"):
            logits_of(outputs)


def test_items_of_a_batch():
    labels = torch.tensor([[5, 1, -100], [2, -100, 3]])
    logits = torch.zeros(2, 3, 7)
    plain = counted_items({"labels": labels}, logits, ["labels"], False)
    assert plain.tolist() == [[True, True, False], [True, False, True]]
    shifted = counted_items({"labels": labels}, logits, ["labels"], True)
    assert shifted.tolist() == [[True, False, False], [False, True, False]]
    assert counted_items({"x": labels}, logits, ["labels"], True).all()
    given = counted_items({"labels": labels, "shift_labels": labels}, logits, ["labels"], True)
    assert given.tolist() == plain.tolist()
    with pytest.raises(ValueError, match=r"Labels of shape \(2, 3\)"):
        counted_items({"labels": labels}, torch.zeros(2, 7), ["labels"], False)


def test_distillation_by_hand():
    """KL of (1/2, 1/2) to (3/4, 1/4) is log(2 / sqrt 3); at T = 2 of logits doubled the same, times 4."""
    teacher, student = torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]).log()
    items, wanted = torch.tensor([True]), torch.tensor(2 / 3**0.5).log()
    torch.testing.assert_close(distillation(student, teacher, items, 1.0), wanted)
    torch.testing.assert_close(distillation(2 * student, 2 * teacher, items, 2.0), 4 * wanted)
    both = torch.cat([student, torch.tensor([[9.0, -9.0]])]), torch.zeros(2, 2), torch.tensor([True, False])
    torch.testing.assert_close(distillation(*both, 1.0), wanted)
    assert distillation(student, student, items, 3.0) == 0
