"""One step of each baseline equals its formula, computed in float64 by functional autograd."""

import pytest
import torch
from formulas import FORGET, RETAIN, SHARPNESS, gauss_newton, gradient_at, masks_for, shifted, weights
from parts import Mlp
from torch.func import functional_call

from hf_sharp_unlearn import FineTune, GradientAscent, Influence, L1Sparse, RandomLabel, SalUn, Scrub
from hf_sharp_unlearn.data.relabel import RandomLabels

KINDS = pytest.mark.parametrize("sharpness", [None, *SHARPNESS], ids=str)


def left_by_trainer(make_trainer, method, batch, masks=None, start=0):
    """What one step leaves in `.grad`. start: steps that lie behind."""
    model = Mlp(dtype=torch.float64)
    trainer = make_trainer(method, model=model, data=FORGET + RETAIN, forget=range(8))
    if masks is not None:
        trainer.partition = type("Given", (), {"masks": masks})
    if method.teacher:
        trainer.teacher = lambda inputs: Mlp(dtype=torch.float64, seed=1)(**inputs)
    trainer.state.max_steps, trainer.state.global_step = 10, start
    trainer.training_step(model, {stream: trainer.data_collator(rows) for stream, rows in batch.items()})
    for name, value in Mlp(dtype=torch.float64).named_parameters():
        assert torch.equal(value, dict(model.named_parameters())[name]), "the weights must be back"
    return {name: value.grad for name, value in model.named_parameters()}


def gradient_of(objective, at):
    leaves = {name: value.clone().requires_grad_() for name, value in at.items()}
    return dict(zip(leaves, torch.autograd.grad(objective(leaves), leaves.values()), strict=True))


def sharp(objective, sharpness, inside=None):
    """Gradient at w + eps, eps from the gradient at w, inside a mask only."""
    w = weights()
    clean = gradient_of(objective, w)
    if sharpness is None:
        return clean
    part = clean if inside is None else {name: clean[name] * inside[name] for name in clean}
    return gradient_of(objective, shifted(sharpness, w, part))


def close(found, wanted):
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-9, atol=1e-11)


def cross_entropy(batch):
    model = Mlp(dtype=torch.float64)
    x, y = torch.stack([row["x"] for row in batch]), torch.tensor([row["labels"] for row in batch])
    return lambda w: functional_call(model, w, (x, y))["loss"]


@KINDS
def test_finetune(make_trainer, sharpness):
    found = left_by_trainer(make_trainer, FineTune(sharpness), {"retain": RETAIN})
    close(found, sharp(cross_entropy(RETAIN), sharpness))


@KINDS
def test_gradient_ascent(make_trainer, sharpness):
    found = left_by_trainer(make_trainer, GradientAscent(sharpness), {"forget": FORGET})
    loss = cross_entropy(FORGET)
    close(found, sharp(lambda w: -loss(w), sharpness))


@KINDS
@pytest.mark.parametrize("kind", [RandomLabel, SalUn])
def test_random_label_and_salun(make_trainer, sharpness, kind):
    """The step is made on whatever labels the loader has put there; the mask multiplies gradient and perturbation."""
    union = [*RETAIN[:5], *[{**row, "labels": (row["labels"] + 1) % 3} for row in FORGET[:3]]]
    masks = None if kind is RandomLabel else masks_for(0.4)
    method = kind(sharpness) if kind is RandomLabel else kind(sharpness, fraction=0.4)
    found = left_by_trainer(make_trainer, method, {"union": union}, masks)
    wanted = sharp(cross_entropy(union), sharpness, masks)
    close(found, wanted if masks is None else {name: wanted[name] * masks[name] for name in wanted})


@KINDS
@pytest.mark.parametrize(("start", "tail", "share"), [(0, 0.0, 1.0), (3, 0.0, 0.7), (3, 0.5, 0.4), (6, 0.5, 0.0)])
def test_l1_sparse(make_trainer, sharpness, start, tail, share):
    """gamma falls linearly with the steps; the penalty is in both passes, at the perturbed weights in the second."""
    gamma = 0.02
    found = left_by_trainer(make_trainer, L1Sparse(gamma, tail, sharpness), {"retain": RETAIN}, start=start)
    loss = cross_entropy(RETAIN)

    def objective(w):
        return loss(w) + share * gamma * sum(value.abs().sum() for value in w.values())

    close(found, sharp(objective, sharpness))


@KINDS
@pytest.mark.parametrize("stream", ["retain", "forget"])
def test_scrub(make_trainer, sharpness, stream):
    alpha, gamma, temperature = 0.3, 0.9, 2.5
    batch = {"retain": RETAIN, "forget": FORGET}[stream]
    found = left_by_trainer(make_trainer, Scrub(alpha, gamma, temperature, 1, sharpness), {stream: batch})
    model, teacher = Mlp(dtype=torch.float64), Mlp(dtype=torch.float64, seed=1)
    x = torch.stack([row["x"] for row in batch])
    target = (teacher(x)["logits"].detach() / temperature).softmax(-1)
    loss = cross_entropy(batch)

    def objective(w):
        guess = (functional_call(model, w, (x,))["logits"] / temperature).softmax(-1)
        divergence = temperature**2 * (target * (target / guess).log()).sum(-1).mean()
        return -divergence if stream == "forget" else alpha * divergence + gamma * loss(w)

    close(found, sharp(objective, sharpness))


@KINDS
def test_influence(make_trainer, sharpness):
    """One update, without learning rate, momentum or clipping: w - scale (G + damping)^-1 v."""
    scale, damping = 0.7, 0.05
    method = Influence(scale, damping, samples=8, iterations=500, tolerance=1e-13, sharpness=sharpness)
    model = Mlp(dtype=torch.float64)
    trainer = make_trainer(method, model=model, data=FORGET[:3] + RETAIN, forget=range(3), max_grad_norm=1e-3)
    trainer.train()
    retain, forget = cross_entropy(RETAIN), cross_entropy(FORGET[:3])
    v = sharp(lambda w: 3 / 11 * (retain(w) - forget(w)), sharpness)
    flat = torch.cat([value.reshape(-1) for value in v.values()])
    matrix = gauss_newton(RETAIN)
    update = torch.linalg.solve(matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype), scale * flat)
    before = torch.cat([value.reshape(-1) for value in weights().values()])
    after = torch.cat([value.detach().reshape(-1) for value in model.parameters()])
    torch.testing.assert_close(after, before - update, rtol=1e-8, atol=1e-10)
    assert trainer.state.global_step == 1


def test_the_gradients_of_the_formulas_are_not_all_alike():
    """The reference itself tells the methods apart."""
    a = gradient_at(Mlp(dtype=torch.float64), weights(), RETAIN, 1.0)
    b = gradient_at(Mlp(dtype=torch.float64), weights(), FORGET, 1.0)
    assert any(not torch.allclose(a[name], b[name], rtol=0.1) for name in a)


def test_random_labels_are_never_true_uniform_and_a_function_of_seed_epoch_and_index():
    draw = RandomLabels(classes=5, first=0, names=["labels"], seed=3).draw
    true = torch.tensor(2)
    drawn = torch.tensor([int(draw(true, epoch, index)) for epoch in range(40) for index in range(50)])
    counts = torch.bincount(drawn, minlength=5)
    assert counts[2] == 0
    expected = 2000 / 4
    others = counts[torch.arange(5) != 2]
    assert ((others - expected).square() / expected).sum() < 16.3, "chi-square, 3 degrees of freedom, p = 0.001"
    assert int(draw(true, 3, 7)) == int(draw(true, 3, 7))
    assert len({tuple(int(draw(true, epoch, i)) for i in range(50)) for epoch in range(9)}) == 9
    other = RandomLabels(classes=5, first=0, names=["labels"], seed=4).draw
    assert [int(other(true, 0, i)) for i in range(50)] != [int(draw(true, 0, i)) for i in range(50)]
    tokens = torch.tensor([-100, 4, 0, -100, 3])
    new = draw(tokens, 0, 1)
    assert torch.equal(new == -100, tokens == -100) and not (new == tokens)[tokens != -100].any()
    assert new.max() <= 4 and new[tokens != -100].min() >= 0
