"""SCRUB: the teacher, rewinding, and what the log says of its two kinds of steps."""

import json
import os
import shutil

import pytest
import torch
from optional_packages import datasets
from parts import Mlp, StopAt, assert_same, differs, rows, weights_of
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from hf_sharp_unlearn import (
    Influence,
    SalUn,
    Scrub,
)


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


def test_a_loss_per_sample_beside_a_teacher_is_refused(make_trainer):
    def per_sample(outputs, inputs):
        return nn.functional.cross_entropy(outputs["logits"], inputs["labels"], reduction="none")

    with pytest.raises(ValueError, match=r"retain loss has shape \(4,\): a method with a teacher adds it to a mean"):
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
