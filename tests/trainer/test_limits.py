"""Limit cases, bitwise on CPU: where a method must turn into a simpler one."""

import pytest
import torch
from parts import BatchNormNet, Mlp, assert_same, assert_same_updates, differs, rows, weights_of
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_sharp_unlearn import ASAM, SAM, NegGradPlus, Partition, SharpMinMax, split_forget

RADII = [SAM(0.0), ASAM(0.0)]


def trained(make_trainer, method, model=None, **arguments):
    trainer = make_trainer(method, model=model, **arguments)
    trainer.train()
    return weights_of(trainer.model)


@pytest.mark.parametrize("sharpness", RADII, ids=str)
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("on", ["both", "retain", "forget"])
def test_rho_zero_is_neggrad(make_trainer, sharpness, accumulation, on):
    settings = {"gradient_accumulation_steps": accumulation}
    plain = trained(make_trainer, NegGradPlus(0.8), Mlp(dropout=0.3), **settings)
    assert_same(plain, trained(make_trainer, NegGradPlus(0.8, sharpness, on), Mlp(dropout=0.3), **settings))


@pytest.mark.parametrize("overlap", [False, True])
def test_rho_zero_is_the_partitioned_update_without_sharpness(make_trainer, overlap):
    plain = trained(make_trainer, SharpMinMax(0.8, None, overlap=overlap), Mlp(dropout=0.3))
    for sharpness in RADII:
        zero = trained(make_trainer, SharpMinMax(0.8, sharpness, overlap=overlap), Mlp(dropout=0.3))
        assert_same(plain, zero)


def test_lambda_zero_is_the_plain_gradient(make_trainer):
    plain = trained(make_trainer, SharpMinMax(0.8, None, overlap=False), Mlp(dropout=0.3))
    zero = trained(make_trainer, SharpMinMax(0.8, lam_retain=0.0, lam_forget=0.0, overlap=False), Mlp(dropout=0.3))
    assert_same(plain, zero)
    assert differs(
        plain, trained(make_trainer, SharpMinMax(0.8, lam_retain=0.0, lam_forget=0.5, overlap=False), Mlp(dropout=0.3))
    )


def test_a_zero_gradient_has_no_perturbation_and_the_second_pass_repeats_the_first(make_trainer):
    """ASAM with eta=0 at weights of zero: || T g || = 0, so the sharp step is the plain step, bit for bit."""
    model, other = Mlp(dropout=0.4), Mlp(dropout=0.4)
    for net in (model, other):
        for weight in net.parameters():
            weight.data.zero_()
    plain = trained(make_trainer, NegGradPlus(0.8), model, max_steps=1)
    assert_same(plain, trained(make_trainer, NegGradPlus(0.8, ASAM(1.0)), other, max_steps=1))


class EveryStep(TrainerCallback):
    def __init__(self):
        self.weights = []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.weights.append(weights_of(model))


@pytest.mark.parametrize("network", [lambda: Mlp(dropout=0.3), BatchNormNet], ids=["dropout", "batchnorm"])
@pytest.mark.parametrize("workers", [0, 2])
def test_alpha_one_is_plain_trainer_on_the_retain_set_step_by_step(make_trainer, tmp_path, network, workers):
    data = rows(24) if network is not BatchNormNet else rows(24, shape=(1, 5, 5))
    ours = make_trainer(NegGradPlus(1.0), model=network(), data=data, dataloader_num_workers=workers)
    ours.add_callback(mine := EveryStep())
    ours.train()

    arguments = {k: getattr(ours.args, k) for k in ("learning_rate", "per_device_train_batch_size", "optim_args")}
    args = TrainingArguments(
        str(tmp_path / "plain"),
        num_train_epochs=2,
        optim="sgd",
        lr_scheduler_type="constant",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_num_workers=workers,
        dataloader_pin_memory=False,
        **arguments,
    )
    retain = split_forget(data, list(range(6)))[1]
    theirs = Trainer(network(), args, train_dataset=retain, callbacks=[plain := EveryStep()])
    theirs.train()
    assert len(mine.weights) == len(plain.weights) == 10
    for a, b in zip(mine.weights, plain.weights, strict=True):
        assert_same(a, b)
    assert ours.state.log_history[-1]["train_loss"] == theirs.state.log_history[-1]["train_loss"]


@pytest.mark.parametrize(("fraction", "kept"), [(1e-9, "one"), (1 - 1e-9, "all but one")])
@pytest.mark.parametrize("overlap", [False, True])
def test_a_part_keeps_at_least_one_parameter_and_leaves_one(make_trainer, fraction, kept, overlap):
    trainer = make_trainer(SharpMinMax(0.8, fraction=fraction, overlap=overlap), max_steps=2)
    start = weights_of(trainer.model)
    trainer.train()
    inside = sum(int(mask.sum()) for mask in trainer.partition.masks.values())
    total = sum(mask.numel() for mask in trainer.partition.masks.values())
    assert inside == (1 if kept == "one" else total - 1)
    assert differs(start, weights_of(trainer.model))


def test_each_part_follows_its_own_stream_only(make_trainer, monkeypatch):
    """alpha = 1 leaves the forget part still, alpha = 0 the retain part, under momentum too."""
    for alpha, still in ((1.0, True), (0.0, False)):
        trainer = make_trainer(SharpMinMax(alpha, overlap=False))
        start = weights_of(trainer.model)
        trainer.train()
        for name, mask in trainer.partition.masks.items():
            moved = trainer.model.state_dict()[name] != start[name]
            assert not moved[mask == still].any()
        assert differs(start, weights_of(trainer.model))


def test_masks_of_all_and_nothing_are_the_two_halves(make_trainer, monkeypatch):
    """An all-ones mask is sharpness-maximising ascent, an all-zeros mask is SAM on the retain loss."""

    def given(value):
        def masks(saliency, fraction):
            return Partition({name: torch.full(s.shape, value) for name, s in saliency.items()})

        return masks

    monkeypatch.setattr(Partition, "from_saliency", given(False))
    retain_half = trained(make_trainer, SharpMinMax(0.8, SAM(0.2), overlap=False), max_steps=1)
    sam = trained(make_trainer, NegGradPlus(0.8, SAM(0.2), "retain"), max_steps=1)
    assert differs(retain_half, sam)  # NegGrad+ still ascends on the forget set
    only_retain = trained(make_trainer, NegGradPlus(1.0, SAM(0.2)), max_steps=1, learning_rate=0.08, max_grad_norm=0)
    retain_half = trained(make_trainer, SharpMinMax(0.8, SAM(0.2), overlap=False), max_steps=1, max_grad_norm=0)
    start = weights_of(Mlp())
    assert_same_updates(only_retain, retain_half, start)

    monkeypatch.setattr(Partition, "from_saliency", given(True))
    f1 = trained(make_trainer, NegGradPlus(0.0, SAM(0.2)), max_steps=1, learning_rate=1.0, max_grad_norm=0)
    f0 = trained(make_trainer, NegGradPlus(0.0), max_steps=1, learning_rate=1.0, max_grad_norm=0)
    sharp = trained(
        make_trainer, SharpMinMax(0.0, SAM(0.2), overlap=False), max_steps=1, learning_rate=1.0, max_grad_norm=0
    )
    assert differs(f0, f1)
    assert_same_updates(sharp, {name: 2 * f0[name] - f1[name] for name in start}, start)
