"""One step of each method equals a straightforward float64 computation of its formula."""

import itertools

import pytest
import torch
from formulas import FORGET, RETAIN, SHARPNESS, gradient_at, masks_for, shifted
from parts import Mlp

from hf_sharp_unlearn import NegGradPlus, SharpMinMax


def composed_by_trainer(make_trainer, method, masks=None):
    model = Mlp(dtype=torch.float64)
    trainer = make_trainer(method, model=model, data=FORGET + RETAIN, forget=range(8))
    if masks is not None:
        trainer.partition = type("Given", (), {"masks": masks})
    collate = trainer.data_collator
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainer.training_step(model, {"retain": collate(RETAIN), "forget": collate(FORGET)})
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]), "the weights must be back"
    return {name: value.grad for name, value in model.named_parameters()}


@pytest.mark.parametrize("sharpness", [None, *SHARPNESS], ids=str)
@pytest.mark.parametrize(("scope", "overlap"), list(itertools.product(["part", "all"], [False, True])))
@pytest.mark.parametrize("lam", [(1.0, 1.0), (0.4, 1.7)])
def test_sharp_minmax_step_is_its_formula(make_trainer, sharpness, scope, overlap, lam):
    alpha, masks = 0.8, masks_for(0.3)
    method = SharpMinMax(alpha, sharpness, 0.3, scope, overlap, *lam)
    found = composed_by_trainer(make_trainer, method, masks)

    model = Mlp(dtype=torch.float64)
    w = {name: value.detach() for name, value in model.named_parameters()}
    r0, f0 = gradient_at(model, w, RETAIN, alpha), gradient_at(model, w, FORGET, alpha - 1)
    r1, f1 = r0, f0
    if sharpness is not None:
        own_r = {n: r0[n] if scope == "all" or overlap else r0[n] * ~masks[n] for n in w}
        own_f = {n: f0[n] if scope == "all" else f0[n] * masks[n] for n in w}
        r1 = gradient_at(model, shifted(sharpness, w, own_r), RETAIN, alpha)
        f1 = gradient_at(model, shifted(sharpness, w, own_f), FORGET, alpha - 1)
    for name in w:
        r = r0[name] + lam[0] * (r1[name] - r0[name])
        f = f0[name] - lam[1] * (f1[name] - f0[name])
        d = r + masks[name] * f if overlap else torch.where(masks[name], f, r)
        torch.testing.assert_close(found[name], d, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sharpness", [None, *SHARPNESS], ids=str)
@pytest.mark.parametrize("on", ["both", "retain", "forget"])
def test_neggrad_step_is_its_formula(make_trainer, sharpness, on):
    alpha = 0.7
    found = composed_by_trainer(make_trainer, NegGradPlus(alpha, sharpness, on))
    model = Mlp(dtype=torch.float64)
    w = {name: value.detach() for name, value in model.named_parameters()}
    r0, f0 = gradient_at(model, w, RETAIN, alpha), gradient_at(model, w, FORGET, alpha - 1)
    at_retain = at_forget = w
    if sharpness is not None:
        base = {"both": {n: r0[n] + f0[n] for n in w}, "retain": r0, "forget": f0}[on]
        moved = shifted(sharpness, w, base)
        at_retain, at_forget = (moved if on in ("both", side) else w for side in ("retain", "forget"))
    r, f = gradient_at(model, at_retain, RETAIN, alpha), gradient_at(model, at_forget, FORGET, alpha - 1)
    for name in w:
        torch.testing.assert_close(found[name], r[name] + f[name], rtol=1e-10, atol=1e-12)


def test_the_trainers_mask_is_the_largest_forget_gradient(make_trainer):
    """float32, eval mode (dropout off), all forget samples, ranked over all parameters together."""
    model = Mlp(dropout=0.5)
    trainer = make_trainer(
        SharpMinMax(fraction=0.3, overlap=False), model=model, data=FORGET + RETAIN, forget=range(8), max_steps=1
    )
    start = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainer.train()
    reference = Mlp(dtype=torch.float64)
    gradient = gradient_at(reference, {n: v.double() for n, v in start.items()}, FORGET, 1.0)
    flat = torch.cat([gradient[name].abs().reshape(-1) for name in start])
    mask = torch.cat([trainer.partition.masks[name].reshape(-1) for name in start])
    assert mask.sum() == round(0.3 * mask.numel())
    assert flat[mask].min() > flat[~mask].max()


def test_custom_losses_replace_the_models_loss_per_sample_or_as_a_mean(make_trainer):
    def per_sample(outputs, inputs):
        return torch.nn.functional.cross_entropy(outputs["logits"], inputs["labels"], reduction="none")

    def mean(outputs, inputs):
        return per_sample(outputs, inputs).mean()

    plain = composed_by_trainer(make_trainer, NegGradPlus(0.7))
    for loss in (per_sample, mean):
        custom = composed_by_trainer(make_trainer, NegGradPlus(0.7, forget_loss=loss, retain_loss=loss))
        for name in plain:
            torch.testing.assert_close(custom[name], plain[name])
    doubled = composed_by_trainer(make_trainer, NegGradPlus(0.0, forget_loss=lambda o, i: 2 * mean(o, i)))
    once = composed_by_trainer(make_trainer, NegGradPlus(0.0))
    for name in once:
        torch.testing.assert_close(doubled[name], 2 * once[name])
