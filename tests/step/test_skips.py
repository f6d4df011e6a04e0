"""fp16 under a gradient scaler: a few skipped steps find the scale, a loss that is not finite ends the run."""

import math
import warnings

import pytest
import torch
from accelerate.state import AcceleratorState
from parts import Mlp, assert_same, weights_of

from hf_sharp_unlearn import SAM, NegGradPlus, SharpMinMax

METHODS = [NegGradPlus(0.8), NegGradPlus(0.8, SAM(0.2)), SharpMinMax(0.8, SAM(0.1), overlap=False)]


class Spoilt(Mlp):
    """Mlp whose loss goes through `spoil(loss, number of the training pass)`."""

    def __init__(self, spoil):
        super().__init__()
        self.spoil, self.passes = spoil, 0

    def forward(self, x, labels=None):
        outputs = super().forward(x, labels)
        if self.training and outputs.get("loss") is not None:
            self.passes += 1
            outputs["loss"] = self.spoil(outputs["loss"], self.passes)
        return outputs


@pytest.fixture
def scaled(make_trainer):
    """accelerate gives a CPU neither autocast nor a scaler for fp16: both are put in here."""

    def make(method, spoil, steps, scale=2.0**8, **options):
        trainer = make_trainer(method, model=Spoilt(spoil), max_steps=steps, logging_strategy="no", **options)
        trainer.accelerator.native_amp = True
        trainer.accelerator.state._mixed_precision = "fp16"
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return trainer

    yield make
    AcceleratorState._reset_state(True)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_losses_that_are_not_finite_end_a_run_at_the_third_step(scaled, method, value):
    trainer = scaled(method, lambda loss, number: loss * value, steps=50)
    start = weights_of(trainer.model)
    with pytest.raises(FloatingPointError, match=r"fp16 in steps 1 to 3 .*retain loss.*scale, 64 now.*bf16=True"):
        trainer.train()
    assert trainer.state.global_step == 2, "two were skipped, the third was not made"
    assert_same(start, weights_of(trainer.model))


def test_a_loss_of_one_stream_is_named_wherever_in_the_run_it_begins(scaled):
    method = NegGradPlus(0.8, forget_loss=lambda outputs, inputs: outputs["loss"] / (outputs["loss"].detach() * 0))
    trainer = scaled(method, lambda loss, number: loss, steps=50)
    with pytest.raises(FloatingPointError, match=r"retain loss in the clean pass: [0-9.]+, forget .*: inf"):
        trainer.train()
    late = scaled(NegGradPlus(0.8), lambda loss, number: loss * (math.nan if number > 20 else 1), steps=50)
    with pytest.raises(FloatingPointError, match="in steps 11 to 13 "):
        late.train()


def test_bad_batches_now_and_then_are_skipped_as_ever(scaled):
    trainer = scaled(NegGradPlus(0.8), lambda loss, number: loss * (math.nan if number % 6 in (1, 3) else 1), steps=30)
    trainer.train()
    assert trainer.state.global_step == 30


def test_gradients_that_no_scale_makes_finite_end_a_run(scaled):
    """The loss is finite, its gradient is not: the scale goes down from 256 to 1, and 3 steps further."""

    def steep(loss, number):
        return loss + (loss - loss.detach()).abs().sqrt()  # the root's slope at 0

    trainer = scaled(NegGradPlus(0.8), steep, steps=200)
    start = weights_of(trainer.model)
    with pytest.raises(FloatingPointError, match="gradients of 11 steps in a row"):
        trainer.train()
    assert_same(start, weights_of(trainer.model))


def test_a_scale_that_is_too_high_finds_its_place(scaled):
    trainer = scaled(NegGradPlus(0.8), lambda loss, number: loss, steps=60, scale=2.0**40)
    start = weights_of(trainer.model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train()
    assert trainer.accelerator.scaler.get_scale() < 2.0**20
    assert any(not torch.equal(value, start[name]) for name, value in weights_of(trainer.model).items())


def test_a_run_that_is_over_before_a_step_was_made_says_so(scaled):
    trainer = scaled(NegGradPlus(0.8), lambda loss, number: loss * math.nan, steps=2)
    with pytest.warns(UserWarning, match="every one of the 2 steps.*in steps 1 to 2 .*retain loss"):
        trainer.train()
    trainer = scaled(NegGradPlus(0.8), lambda loss, number: loss, steps=3, scale=2.0**40)
    with pytest.warns(UserWarning, match="every one of the 3 steps.*Make more steps"):
        trainer.train()
