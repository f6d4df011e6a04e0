"""A step needs no Trainer: what a run fixes and what a step adds, handed over as they are."""

from copy import deepcopy

import pytest
import torch
from accelerate import Accelerator
from formulas import FORGET, RETAIN, gradient_at, masks_for
from parts import Mlp, weights_of
from transformers import default_data_collator as collate

from hf_sharp_unlearn import SAM, NegGradPlus, SalUn, SharpMinMax
from hf_sharp_unlearn.data import COUNTS
from hf_sharp_unlearn.kernels import reference
from hf_sharp_unlearn.step import Losses, PendingWindow, StepContext, Steps, Update, checked_norm
from hf_sharp_unlearn.step.structure import Structure


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def context_of(model, accelerator, method, **settings):
    losses = Losses(
        compute=lambda model, inputs, items, **_: model(**inputs)["loss"],
        custom=method.loss_of,
        label_names=["labels"],
        shift=False,
        context=torch.enable_grad,
        autocast=torch.enable_grad,
    )
    return StepContext(model=model, module=model, loss=losses, accelerator=accelerator, kernels=reference, **settings)


def micro_batch():
    counts = {"retain": (len(RETAIN),) * 2, "forget": (len(FORGET),) * 2}
    return {"retain": collate(RETAIN), "forget": collate(FORGET), COUNTS: counts}


def test_steps_without_a_trainer_leave_the_methods_gradient(accelerator):
    model, method = Mlp(dtype=torch.float64), NegGradPlus(0.8)
    steps = Steps(context_of(model, accelerator, method), method.step)
    objective = steps.make([micro_batch()], step=1, progress=0.0)
    w = {name: value.detach() for name, value in model.named_parameters()}
    r, f = gradient_at(model, w, RETAIN, 0.8), gradient_at(model, w, FORGET, -0.2)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, r[name] + f[name], rtol=1e-10, atol=1e-12)
    logs = steps.take_logs()
    assert float(objective) == pytest.approx(0.8 * logs["loss_retain"] - 0.2 * logs["loss_forget"])
    assert steps.take_logs() == {}, "logs are taken once"


def test_the_context_is_made_once_and_its_shadows_are_kept(accelerator):
    model, method = Mlp(), SharpMinMax(0.8)
    masks = {name: mask.to(torch.bool) for name, mask in masks_for(0.3).items()}
    packed = {name: reference.pack([masks[name]], [w.detach()])[0] for name, w in model.named_parameters()}
    context = context_of(model, accelerator, method, masks=packed)
    steps = Steps(context, method.step)
    start = weights_of(model)
    steps.make([micro_batch()], 1, 0.0)
    addresses = {place: shadow.data_ptr() for place, shadow in context.shadows.items()}
    assert len(addresses) == len(list(model.parameters()))
    steps.make([micro_batch()], 2, 0.5)
    assert {place: shadow.data_ptr() for place, shadow in context.shadows.items()} == addresses
    assert all(torch.equal(value, start[name]) for name, value in weights_of(model).items())
    model.second.bias.requires_grad_(False)
    with pytest.raises(ValueError, match="requires_grad was changed after the run began"):
        steps.make([micro_batch()], 3, 0.5)


def changed_weight(model):
    model.first.weight.data = model.first.weight.data.clone()


def changed_module(model):
    model.first = deepcopy(model.first)


def changed_parameter(model):
    model.first.weight = torch.nn.Parameter(model.first.weight.detach().clone())


def changed_flag(model):
    model.second.bias.requires_grad_(False)


def more_buffers(model):
    model.register_buffer("count", torch.zeros(()))


@pytest.mark.parametrize("change", [changed_weight, changed_module, changed_parameter, changed_flag, more_buffers])
def test_what_a_step_works_on_is_made_again_only_if_the_model_has_changed(accelerator, monkeypatch, change):
    made = []

    class Counted(Structure):
        def __init__(self, context):
            made.append(1)
            super().__init__(context)

    monkeypatch.setattr("hf_sharp_unlearn.step.steps.Structure", Counted)
    model, method = Mlp(), NegGradPlus(0.8, SAM(0.1))
    steps = Steps(context_of(model, accelerator, method), method.step)
    for number in (1, 2, 3):
        steps.make([micro_batch()], number, 0.0)
        with torch.no_grad():
            model.first.weight.add_(0.1)  # as an optimizer does
    assert len(made) == 1
    change(model)
    model.zero_grad()
    steps.make([micro_batch()], 4, 0.0)
    model.zero_grad()
    steps.make([micro_batch()], 5, 0.0)
    assert len(made) == 2
    fresh = deepcopy(model)
    fresh.zero_grad()
    other = Steps(context_of(fresh, accelerator, method), method.step)
    other.make([micro_batch()], 1, 0.0)
    for weight, expected in zip(model.parameters(), fresh.parameters(), strict=True):
        assert (weight.grad is None) == (expected.grad is None)
        assert weight.grad is None or torch.equal(weight.grad, expected.grad)


def test_a_norm_that_is_not_finite_undoes_the_step(accelerator):
    model, method = Mlp(), NegGradPlus(0.8)
    steps = Steps(context_of(model, accelerator, method), method.step)
    steps.make([micro_batch()], 1, 0.0)
    with pytest.raises(FloatingPointError, match="gradient of step 7"):
        checked_norm(steps.last, lambda: float("inf"), 7)
    assert all(weight.grad is None for weight in model.parameters())


def test_a_pending_window_is_given_at_its_last_micro_batch():
    pending, batches = PendingWindow(), [{"a": 1}, {"a": 1}, {"a": 1}]
    pending.fill(batches)
    assert pending.take(batches[0]) is None and pending.take(batches[1]) is None
    assert pending.take(batches[2]) is batches
    alone = {"a": 1}
    assert pending.take(alone) == [alone], "equal, but not one of those that were fetched"


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_frozen_weights_cost_a_sweep_only_where_something_would_move_them(make_trainer, decay):
    trainer = make_trainer(SalUn(fraction=0.3), max_steps=3, weight_decay=decay)
    hooks = []
    step = trainer.training_step
    trainer.training_step = lambda *a: (
        hooks.append(len(trainer.optimizer.optimizer._optimizer_step_post_hooks)),
        step(*a),
    )[1]
    start = weights_of(trainer.model)
    trainer.train()
    assert set(hooks) == {1 if decay else 0}
    moved = 0
    for name, mask in trainer.partition.masks.items():
        after = weights_of(trainer.model)[name]
        assert torch.equal(after[~mask], start[name][~mask])
        moved += int((after != start[name]).sum())
    assert moved > 0
    assert len(trainer.optimizer.optimizer._optimizer_step_post_hooks) == 0, "released with the run"


def test_an_update_gives_its_optimizer_back():
    model = Mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    update = Update(optimizer, reference, 1.0)
    masks = {name: torch.zeros_like(w, dtype=torch.bool) for name, w in model.named_parameters()}
    update.freeze(dict(model.named_parameters()), masks, ours=False)
    start = weights_of(model)
    sum(weight.sum() for weight in model.parameters()).backward()
    optimizer.step()
    assert all(torch.equal(value, start[name]) for name, value in weights_of(model).items())
    update.release()
    optimizer.step()
    assert not all(torch.equal(value, start[name]) for name, value in weights_of(model).items())
