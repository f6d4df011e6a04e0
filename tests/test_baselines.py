"""Limit cases of the baselines, and what is particular to each: frozen weights, the teacher, rewinding, refusals."""

import copy
import json
import os

import datasets
import pytest
import torch
from parts import BatchNormNet, Mlp, assert_same, differs, images, rows, timm_resnet, weights_of
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from hf_sharp_unlearn import (
    ASAM,
    SAM,
    FineTune,
    GradientAscent,
    Influence,
    L1Sparse,
    NegGradPlus,
    RandomLabel,
    SalUn,
    Scrub,
)

SHARP = pytest.mark.parametrize("sharpness", [None, SAM(0.1), ASAM(0.5)], ids=str)


def trained(make_trainer, method, **arguments):
    trainer = make_trainer(method, model=Mlp(dropout=0.2), **arguments)
    trainer.train()
    return weights_of(trainer.model)


# ---- limits ----


@SHARP
def test_l1_sparse_with_gamma_0_is_fine_tuning_and_fine_tuning_is_neggrad_at_alpha_1(make_trainer, sharpness):
    plain = trained(make_trainer, FineTune(sharpness))
    assert_same(plain, trained(make_trainer, L1Sparse(0.0, sharpness=sharpness)))
    assert_same(plain, trained(make_trainer, NegGradPlus(1.0, sharpness)))
    assert differs(plain, trained(make_trainer, L1Sparse(1e-3, sharpness=sharpness)))


@SHARP
def test_gradient_ascent_is_neggrad_at_alpha_0(make_trainer, sharpness):
    one = trained(make_trainer, GradientAscent(sharpness))
    assert_same(one, trained(make_trainer, NegGradPlus(0.0, sharpness)))


@SHARP
@pytest.mark.parametrize("optim", ["sgd", "adamw_torch", "rmsprop"])
def test_salun_with_a_mask_of_ones_is_random_label(make_trainer, sharpness, optim):
    """To float tolerance: the one-sweep optimizer adds in another order than torch's."""
    settings = {"optim": optim, "learning_rate": 0.01, "weight_decay": 0.1}
    plain = trained(make_trainer, RandomLabel(sharpness), **settings)
    for name, value in trained(make_trainer, SalUn(sharpness, fraction=1.0), **settings).items():
        torch.testing.assert_close(value, plain[name], rtol=1e-4, atol=1e-6)
    masked = trained(make_trainer, SalUn(sharpness, fraction=0.5), **settings)
    assert any(not torch.allclose(masked[name], plain[name], atol=1e-4) for name in plain)


@SHARP
def test_scrub_with_msteps_0_and_alpha_only_is_distillation(make_trainer, sharpness):
    """The same steps as a loss of one's own, the divergence from a copy of the model, on the retain set."""
    temperature = 3.0
    teacher = Mlp().eval()

    def divergence(outputs, inputs):
        with torch.no_grad():
            target = teacher(inputs["x"])["logits"] / temperature
        guess = (outputs["logits"] / temperature).log_softmax(-1)
        loss = nn.functional.kl_div(guess, target.log_softmax(-1), log_target=True, reduction="none")
        return temperature**2 * loss.sum(-1)

    ours = trained(make_trainer, Scrub(1.0, 0.0, temperature, 0, sharpness))
    theirs = trained(make_trainer, FineTune(sharpness, retain_loss=divergence))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-6)
    assert differs(ours, weights_of(Mlp()))


# ---- SalUn: frozen weights ----


@SHARP
@pytest.mark.parametrize("optim", ["sgd", "adamw_torch", "adafactor", "rmsprop"])
def test_salun_moves_nothing_outside_its_mask_bit_for_bit(make_trainer, sharpness, optim):
    """Under weight decay and momentum, with any optimizer; what is inside does move."""
    model = BatchNormNet()
    method = SalUn(sharpness, fraction=0.3)
    trainer = make_trainer(
        method, model=model, data=rows(24, shape=(1, 5, 5)), optim=optim, learning_rate=0.01, weight_decay=0.5
    )
    start = weights_of(model)
    trainer.train()
    masks = trainer.partition.masks
    for name, value in model.named_parameters():
        assert torch.equal(value[~masks[name]], start[name][~masks[name]]), name
    inside = torch.cat([(value != start[name])[masks[name]] for name, value in model.named_parameters()])
    assert inside.float().mean() > 0.9
    share = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
    assert share == pytest.approx(0.3, abs=0.01)
    optimizer = trainer.optimizer.optimizer
    assert not optimizer._optimizer_step_post_hooks, "the optimizer is left as it was found"


def test_salun_takes_the_largest_gradients_of_the_trained_model(make_trainer):
    trainer = make_trainer(SalUn(fraction=0.4), max_steps=1)
    model = copy.deepcopy(trainer.model)
    trainer.train()
    x = torch.stack([row["x"] for row in rows(24)[:6]])
    y = torch.tensor([row["labels"] for row in rows(24)[:6]])
    model(x, y)["loss"].backward()
    size = torch.cat([weight.grad.abs().reshape(-1) for weight in model.parameters()])
    mask = torch.cat([trainer.partition.masks[name].reshape(-1) for name, _ in model.named_parameters()])
    assert size[mask].min() >= size[~mask].max()


# ---- SCRUB: teacher and rewinding ----


def test_the_teacher_is_the_starting_model_in_eval_mode_and_a_resume_takes_no_other(make_trainer, tmp_path):
    def make(model):
        return make_trainer(Scrub(), model=model, save_strategy="steps", save_steps=4, output_dir=tmp_path / "run")

    model = Mlp(dropout=0.5)
    start = weights_of(model)
    trainer = make(model)
    trainer.train()
    assert_same(start, weights_of(trainer.teacher.module))
    assert not any(part.training for part in trainer.teacher.module.modules())
    assert not any(weight.requires_grad for weight in trainer.teacher.module.parameters())
    checkpoint = str(tmp_path / "run" / "checkpoint-4")
    with open(os.path.join(checkpoint, "teacher.json")) as file:
        assert json.load(file)["sha256"] == trainer.teacher.fingerprint
    other = Mlp(dropout=0.5, seed=3)
    before = weights_of(other)
    with pytest.raises(ValueError, match="another teacher"):
        make(other).train(resume_from_checkpoint=checkpoint)
    assert_same(before, weights_of(other))
    end = weights_of(trainer.model)
    trainer.train(
        resume_from_checkpoint=checkpoint
    )  # its model is the unlearned one by now, its teacher is the right one
    assert_same(end, weights_of(trainer.model))
    os.remove(os.path.join(checkpoint, "teacher.json"))
    with pytest.raises(ValueError, match=r"no teacher\.json"):
        make(Mlp(dropout=0.5)).train(resume_from_checkpoint=checkpoint)


def test_the_teacher_copies_trainable_weights_once_and_shares_frozen_ones(make_trainer):
    model = Mlp()
    model.first.requires_grad_(False)
    trainer = make_trainer(Scrub(), model=model, max_steps=1)
    trainer.train()
    taught = dict(trainer.teacher.module.named_parameters())
    assert taught["first.weight"] is model.first.weight
    assert taught["second.weight"].data_ptr() != model.second.weight.data_ptr()


def test_rewind_takes_the_epoch_whose_forget_error_is_closest_to_that_on_unseen_samples(make_trainer, monkeypatch):
    errors = iter([0.25, 0.875, 0.625, 1.0])  # at the ends of four epochs
    trainer = make_trainer(
        Scrub(rewind="test"), num_train_epochs=4, trainer={"eval_dataset": rows(9, seed=3)}, learning_rate=0.05
    )
    rewind = next(c for c in trainer.callback_handler.callbacks if type(c).__name__ == "Rewind")
    kept = []

    def error(split, classes=None):
        if split == "forget" and len(kept) < 4:
            kept.append(weights_of(trainer.model))
            return next(errors), None
        return 0.6875, None  # the reference

    monkeypatch.setattr(rewind, "_error", error)
    trainer.train()
    assert rewind.chosen == 3
    assert_same(kept[2], weights_of(trainer.model))
    assert differs(kept[3], weights_of(trainer.model))
    assert not os.path.exists(rewind.folder)
    assert {"rewind_epoch": 3, "rewind_forget_error": 0.625, "rewind_reference_error": 0.6875}.items() <= (
        trainer.state.log_history[-1].items()
    )


def test_rewind_measures_the_error_on_the_forget_sets_classes_only_and_survives_a_resume(make_trainer, tmp_path):
    data = [{**row, "labels": 1 if i < 6 else row["labels"]} for i, row in enumerate(rows(24))]
    test = rows(30, seed=3)

    def make(name):
        return make_trainer(
            Scrub(rewind="test"), data=data, trainer={"eval_dataset": test}, save_strategy="epoch", num_train_epochs=3,
            output_dir=tmp_path / name,
        )  # fmt: skip

    whole = make("whole")
    rewind = next(c for c in whole.callback_handler.callbacks if type(c).__name__ == "Rewind")
    error, _ = rewind._error("test", rewind._error("forget")[1])
    x = torch.stack([row["x"] for row in test if row["labels"] == 1])
    assert error == pytest.approx((whole.model.eval()(x)["logits"].argmax(-1) != 1).double().mean().item())
    whole.train()
    from test_resume import StopAt

    first = make("parts")
    first.add_callback(StopAt(8))  # in the second epoch
    first.train()
    assert os.listdir(tmp_path / "parts" / "rewind"), "stopped early: nothing is chosen yet, nothing is lost"
    second = make("parts")
    second.train(resume_from_checkpoint=os.path.join(tmp_path, "parts", "checkpoint-8"))
    assert_same(weights_of(whole.model), weights_of(second.model))


@pytest.mark.parametrize("split", ["forget", "retain", "nowhere"])
def test_rewind_needs_a_split_of_unseen_samples(make_trainer, split):
    with pytest.raises(ValueError, match=f"rewind='{split}'.*'test'"):
        make_trainer(Scrub(rewind=split), trainer={"eval_dataset": rows(9, seed=3)})


# ---- language models and vision models ----


@pytest.mark.parametrize(
    "method", [RandomLabel(), SalUn(), Scrub(msteps=1), Influence(damping=0.1, iterations=3)], ids=str
)
def test_on_a_causal_language_model_with_masked_tokens(make_trainer, method):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 32, (20, 6), generator=generator)
    labels = tokens.clone()
    labels[:, 1:3] = -100
    data = datasets.Dataset.from_dict({"input_ids": tokens.tolist(), "labels": labels.tolist()})
    trainer = make_trainer(method, model=model, data=data, forget=range(5), num_train_epochs=1, learning_rate=0.01)
    start = weights_of(model)
    trainer.train()
    assert differs(start, weights_of(model))


@pytest.mark.parametrize("method", [SalUn(ASAM(0.5)), Scrub(msteps=1), Influence(damping=0.1, iterations=3)], ids=str)
def test_on_a_timm_model(make_trainer, method):
    trainer = make_trainer(method, model=timm_resnet(), data=images(24), num_train_epochs=1)
    start = weights_of(trainer.model)
    trainer.train()
    assert differs(start, weights_of(trainer.model))


# ---- refusals ----


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RandomLabel(classes=1), "classes=1"),
        (lambda: RandomLabel(forget_loss=print), "forget_loss"),
        (lambda: SalUn(fraction=0.0), "fraction=0"),
        (lambda: SalUn(fraction=1.5), "fraction=1.5"),
        (lambda: L1Sparse(-1.0), "gamma=-1.0"),
        (lambda: L1Sparse(tail=1.0), "tail=1"),
        (lambda: Scrub(msteps=-1), "msteps=-1"),
        (lambda: Scrub(msteps=1.5), "msteps=1.5"),
        (lambda: Scrub(temperature=0.0), "temperature=0.0"),
        (lambda: Scrub(alpha=0.0, gamma=0.0), "alpha=0, gamma=0"),
        (lambda: Scrub(forget_loss=print), "forget_loss"),
        (lambda: Scrub(rewind=3), "rewind=3"),
        (lambda: Influence(damping=0.0), "damping=0.0"),
        (lambda: Influence(samples=0), "samples=0"),
        (lambda: Influence(tolerance=2.0), "tolerance=2.0"),
        (lambda: Influence(tolerance=1), "tolerance=1"),
        (lambda: FineTune(sharpness=0.1), "sharpness=0.1"),
    ],
)
def test_hyperparameters_out_of_range_are_named(make, words):
    with pytest.raises(ValueError, match=words.replace(".", r"\.")):
        make()


def test_influence_refuses_what_does_not_fit_and_names_the_number(make_trainer, monkeypatch):
    free = 9 * sum(weight.nbytes for weight in Mlp().parameters())
    memory = type("Memory", (), {"available": free - 1})
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    with pytest.raises(ValueError, match="9 vectors .* it needs .* GiB"):
        make_trainer(Influence())
    memory.available = free
    make_trainer(Influence())


def test_influence_refuses_an_optimizer_of_the_users_own_and_fp16(make_trainer):
    model = Mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimizers="):
        make_trainer(Influence(), model=model, trainer={"optimizers": (optimizer, None)})


def test_random_labels_need_class_labels(make_trainer):
    data = [{"x": row["x"], "labels": torch.rand(3)} for row in rows(24)]

    def regression(outputs, inputs):
        return (outputs["logits"] - inputs["labels"]).square().mean()

    trainer = make_trainer(RandomLabel(classes=3, retain_loss=regression), data=data)
    with pytest.raises(ValueError, match="forget_dataset: labels 'labels'.*integer class labels"):
        trainer.train()


def test_a_stream_that_is_missing_is_named(make_trainer):
    for method in (RandomLabel(), SalUn(), Scrub(), Influence(), GradientAscent()):
        with pytest.raises(ValueError, match="forget_dataset=None"):
            make_trainer(method, trainer={"forget_dataset": None})
    for method in (RandomLabel(), FineTune(), L1Sparse(), Scrub(), Influence()):
        with pytest.raises(ValueError, match="retain_dataset=None"):
            make_trainer(method, trainer={"retain_dataset": None})


# ---- the teacher of LoRA, and of a trainer that trains twice ----


def test_the_teacher_of_a_lora_model_shares_its_base(make_trainer):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    tokens = torch.randint(1, 32, (20, 6), generator=torch.Generator().manual_seed(0)).tolist()
    data = datasets.Dataset.from_dict({"input_ids": tokens, "labels": tokens})
    trainer = make_trainer(Scrub(msteps=1), model=model, data=data, learning_rate=0.05, num_train_epochs=2)
    start = weights_of(model)
    trainer.train()
    taught = dict(trainer.teacher.module.named_parameters())
    for name, weight in model.named_parameters():
        assert (taught[name] is weight) == (not weight.requires_grad), name
    assert_same(start, weights_of(trainer.teacher.module))
    moved = {name for name, value in weights_of(model).items() if not torch.equal(value, start[name])}
    assert moved and all("lora" in name for name in moved)


@pytest.mark.parametrize("method", [Scrub(msteps=1), SalUn(), Influence(damping=0.1, iterations=3)], ids=str)
@pytest.mark.parametrize("bf16", [False, True])
def test_a_second_run_starts_from_the_first_ones_end(make_trainer, method, bf16):
    """Teacher, mask and whole-set passes are made anew, of the model that accelerate has wrapped by then."""
    trainer = make_trainer(method, bf16=bf16, num_train_epochs=1)
    trainer.train()
    between = weights_of(trainer.model)
    trainer.train()
    assert differs(between, weights_of(trainer.model))
    if method.teacher:
        assert_same(between, weights_of(trainer.teacher.module))
    if method.frozen:
        for name, mask in trainer.partition.masks.items():
            assert torch.equal(weights_of(trainer.model)[name][~mask], between[name][~mask])


# ---- what must not pass in silence ----


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_influence_stops_at_a_non_finite_loss_and_names_it(make_trainer, value):
    model = Mlp()
    start = weights_of(model)
    trainer = make_trainer(Influence(retain_loss=lambda outputs, inputs: outputs["loss"] * value), model=model)
    with pytest.raises(FloatingPointError, match="whole set.*retain loss"):
        trainer.train()
    assert_same(start, weights_of(model))


def test_influence_refuses_half_precision_weights(make_trainer):
    with pytest.raises(ValueError, match=r"first\.weight is torch\.bfloat16"):
        make_trainer(Influence(), model=Mlp(dtype=torch.bfloat16))


@pytest.mark.parametrize("method", [Scrub(), GradientAscent()], ids=str)
def test_a_pass_that_drop_last_would_leave_empty_is_refused(make_trainer, method):
    trainer = make_trainer(method, dataloader_drop_last=True, per_device_train_batch_size=8)
    with pytest.raises(ValueError, match="dataloader_drop_last=True: forget_dataset has 6 samples, less than the 8"):
        trainer.train()


def test_classes_beyond_the_models_head_are_refused(make_trainer):
    with pytest.raises(ValueError, match=r"RandomLabel\(classes=7\): the model's head has 3"):
        make_trainer(RandomLabel(classes=7), model=timm_resnet(), data=images(24))


def test_the_saliency_mask_is_made_with_the_loss_that_replaces_the_models(make_trainer):
    """Only the last layer's bias of class 0 is in this loss."""
    method = SalUn(fraction=1 / 83, retain_loss=lambda outputs, inputs: outputs["logits"][:, 0].mean())
    trainer = make_trainer(method, max_steps=1)
    trainer.train()
    assert trainer.partition.masks["second.bias"].tolist() == [True, False, False]


def test_a_loss_per_sample_beside_a_teacher_is_refused(make_trainer):
    def per_sample(outputs, inputs):
        return nn.functional.cross_entropy(outputs["logits"], inputs["labels"], reduction="none")

    with pytest.raises(ValueError, match=r"retain loss has shape \(4,\): Scrub adds it to a mean"):
        make_trainer(Scrub(msteps=0, retain_loss=per_sample)).train()


def test_a_streams_logged_loss_is_the_mean_over_the_steps_that_had_it(make_trainer):
    """SCRUB: 2 steps on the forget set, then 5 on the retain set, logged together and one by one."""
    logs = {}
    for every in (1, 7):
        trainer = make_trainer(Scrub(msteps=1), num_train_epochs=1, logging_strategy="steps", logging_steps=every)
        trainer.train()
        logs[every] = trainer.state.log_history[:-1]
    for stream, steps in (("forget", 2), ("retain", 5)):
        single = [entry[f"loss_{stream}"] for entry in logs[1] if f"loss_{stream}" in entry]
        assert len(single) == steps and logs[7][0][f"loss_{stream}"] == pytest.approx(sum(single) / steps, rel=1e-5)


@pytest.mark.parametrize("flag", ["prediction_loss_only", "batch_eval_metrics"])
def test_rewind_needs_predictions(make_trainer, flag):
    with pytest.raises(ValueError, match=f"{flag}=True"):
        make_trainer(
            Scrub(rewind="test"), trainer={"eval_dataset": rows(9), "compute_metrics": lambda p, compute_result=0: {}},
            **{flag: True},
        )  # fmt: skip


def test_rewind_says_what_is_missing_when_the_kept_weights_are_not_there(make_trainer, tmp_path):
    import shutil

    from test_resume import StopAt

    def make():
        return make_trainer(
            Scrub(rewind="test"),
            trainer={"eval_dataset": rows(9, seed=3)},
            num_train_epochs=3,
            output_dir=tmp_path / "a",
        )

    first = make()
    first.add_callback(StopAt(8))
    first.train()
    shutil.rmtree(tmp_path / "a" / "rewind")
    with pytest.raises(ValueError, match=r"epochs \[1\]"):
        make().train(resume_from_checkpoint=os.path.join(tmp_path, "a", "checkpoint-8"))
