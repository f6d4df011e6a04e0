"""What the baselines refuse, and what must not pass in silence."""

import pytest
import torch
from parts import Mlp, assert_same, images, rows, timm_resnet, weights_of

from hf_sharp_unlearn import (
    FineTune,
    GradientAscent,
    Influence,
    L1Sparse,
    RandomLabel,
    SalUn,
    Scrub,
)


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
