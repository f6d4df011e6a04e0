"""Limit cases of the baselines, frozen weights, and each on a language model and a timm model."""

import copy

import pytest
import torch
from optional_packages import datasets
from parts import BatchNormNet, Mlp, assert_same, assert_same_updates, differs, images, rows, timm_resnet, weights_of
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
    start = weights_of(Mlp())
    assert_same_updates(trained(make_trainer, SalUn(sharpness, fraction=1.0), **settings), plain, start)
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
    assert_same_updates(ours, theirs, weights_of(Mlp()))
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
