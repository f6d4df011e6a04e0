"""What bf16 leaves of a small perturbation: of the weights' change, and of the gradient's."""

import pytest
import torch
from parts import assert_same, differs, rows, weights_of
from transformers import AutoModelForCausalLM, LlamaConfig, TrainerCallback

from hf_sharp_unlearn import ASAM, SAM, NegGradPlus, SharpMinMax
from hf_sharp_unlearn.step.window import Window

TINY = SharpMinMax(0.8, SAM(0.005), overlap=False)


def llama():
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, vocab_size=128, max_position_embeddings=64)
    )  # fmt: skip


def texts(count):
    words = torch.randint(128, (count, 16), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in words]


def changes(make_trainer, monkeypatch, **arguments):
    """What the perturbation of the first step changes in the forget gradient, f1 - f0, and what is logged of it."""
    seen, plain = {}, Window.gradient

    def watched(window, objective, again=False, **options):
        gradient = plain(window, objective, again=again, **options)
        if "forget" in objective:
            seen[again] = torch.cat([grad.detach().double().flatten() for grad in gradient])
        return gradient

    with monkeypatch.context() as patch:
        patch.setattr(Window, "gradient", watched)
        trainer = make_trainer(TINY, model=llama(), data=texts(24), max_steps=1, log_perturbation=True,
                               logging_strategy="steps", logging_steps=1, **arguments)  # fmt: skip
        trainer.train()
    return seen[True] - seen[False], trainer.state.log_history[0]


def cosine(a, b):
    return (a @ b / (a.norm() * b.norm())).item()


def test_under_bf16_autocast_a_part_of_a_small_change_is_noise_and_full_precision_brings_it_back(
    make_trainer, monkeypatch
):
    exact, plain = changes(make_trainer, monkeypatch)
    narrow, logged = changes(make_trainer, monkeypatch, bf16=True)
    whole, full = changes(make_trainer, monkeypatch, bf16=True, full_precision_sharpness=True)
    assert plain["perturbation_cosine"] == pytest.approx(1, abs=1e-5)
    assert "perturbation_cosine_cast" not in plain and "perturbation_cosine_cast" not in full
    assert logged["perturbation_cosine"] == pytest.approx(1, abs=1e-5), "the weights themselves are float32"
    assert logged["perturbation_cosine_cast"] < 0.9, "bf16 rounds most of this small perturbation away"
    # Less of it is lost to the gradient: rounding errors of weights point nowhere in particular.
    assert logged["perturbation_cosine_cast"] + 0.05 < cosine(narrow, exact) < 0.999
    assert torch.equal(whole, exact)


@pytest.mark.parametrize("method", [SharpMinMax(0.8, ASAM(0.5)), NegGradPlus(0.8, SAM(0.1))], ids=str)
@pytest.mark.parametrize("own", [False, True], ids=["bf16", "the caller's autocast"])
def test_a_run_in_full_precision_is_the_run_without_bf16_and_evaluates_with_it(make_trainer, method, own):
    plain = make_trainer(method, max_steps=3)
    plain.train()
    full = make_trainer(method, max_steps=3, full_precision_sharpness=True, bf16=not own)
    with torch.autocast("cpu", torch.bfloat16, enabled=own):
        full.train()
        loss = full.evaluate()["eval_retain_loss"]
    assert_same(weights_of(plain.model), weights_of(full.model))
    assert loss != plain.evaluate()["eval_retain_loss"]


def test_a_method_without_a_sharpness_stays_in_bf16(make_trainer):
    ends = []
    for full in (False, True):
        trainer = make_trainer(NegGradPlus(0.8), data=rows(24), max_steps=2, bf16=True, full_precision_sharpness=full)
        trainer.train()
        ends.append(weights_of(trainer.model))
    assert_same(*ends)
    plain = make_trainer(NegGradPlus(0.8), data=rows(24), max_steps=2)
    plain.train()
    assert differs(ends[0], weights_of(plain.model))


def test_precision_flags_are_back_after_an_error(make_trainer):
    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, model, **kwargs):
            def broken(**inputs):
                assert torch.backends.cudnn.conv.fp32_precision != "tf32"
                raise RuntimeError("boom")

            model.forward = model._original_forward = broken

    before = torch.backends.cudnn.conv.fp32_precision
    trainer = make_trainer(SharpMinMax(0.8), max_steps=2, bf16=True, full_precision_sharpness=True)
    trainer.add_callback(Stop())
    with pytest.raises(RuntimeError, match="boom"):
        trainer.train()
    assert torch.backends.cudnn.conv.fp32_precision == before
