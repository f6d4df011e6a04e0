"""Perturbing the weights of real models: memory of every kind, two dtypes, and whether the perturbation arrived."""

import math

import pytest
import torch
from parts import Mlp, assert_same, assert_same_updates, differs, images, timm_resnet, weights_of

from hf_sharp_unlearn import ASAM, SAM, NegGradPlus, SharpMinMax
from hf_sharp_unlearn.kernels import BACKENDS, load
from hf_sharp_unlearn.step.sharpness import realised_cosine

METHODS = [NegGradPlus(0.8, SAM(0.2)), NegGradPlus(0.8, ASAM(1.0), "retain"), SharpMinMax(0.8, overlap=False)]


def test_perturbation_cosine_is_logged_on_request(make_trainer):
    every = {"max_steps": 2, "logging_strategy": "steps", "logging_steps": 1}
    trainer = make_trainer(SharpMinMax(0.8, overlap=False), log_perturbation=True, **every)
    trainer.train()
    values = [entry["perturbation_cosine"] for entry in trainer.state.log_history if "perturbation_cosine" in entry]
    assert len(values) == 2 and all(value == pytest.approx(1, abs=1e-6) for value in values)
    trainer = make_trainer(SharpMinMax(0.8, overlap=False), **every)
    trainer.train()
    assert not any("perturbation_cosine" in entry for entry in trainer.state.log_history)


@pytest.mark.parametrize("inside", [None, True, False])
@pytest.mark.parametrize("etas", [[None, None], [0.0, 0.01]])
@pytest.mark.parametrize("backend", list(BACKENDS))
def test_bfloat16_weights_swallow_a_small_perturbation_and_the_cosine_shows_it(inside, etas, backend):
    kernels = load(backend)
    generator = torch.Generator().manual_seed(0)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        w = [(torch.randn(4096, generator=generator) * 0.02 + 0.02).to(dtype) for _ in range(2)]
        g = [torch.randn(4096, generator=generator).to(dtype) for _ in range(2)]
        masks = kernels.pack([x > 0 for x in g], w) if inside is not None else None
        scale = 3e-5 if etas[0] is None else 1.5e-2
        after = [torch.empty_like(x) for x in w]
        kernels.displace(w, g, after, etas, scale, masks, inside)
        found[dtype] = realised_cosine(w, after, g, etas, scale, masks, inside)
    assert found[torch.float32] > 0.999 and found[torch.bfloat16] < 0.8
    assert math.isnan(realised_cosine(w, w, g, etas, scale, masks, inside)), "nothing moved"


def test_parameters_over_the_same_memory_are_refused(make_trainer):
    model = Mlp()
    model.second.bias = torch.nn.Parameter(model.first.bias.data[2:5])
    for method in (SharpMinMax(0.8, overlap=False), NegGradPlus(0.8, SAM(0.1))):
        with pytest.raises(ValueError, match="first.bias and second.bias are separate parameters over the same memory"):
            make_trainer(method, model=model)
    make_trainer(NegGradPlus(0.8), model=model)
    tied = Mlp()
    tied.again = tied.second  # one Parameter under two names is a tied weight
    make_trainer(SharpMinMax(0.8, overlap=False), model=tied, max_steps=2).train()


def test_a_parameter_in_a_larger_block_is_perturbed_where_it_is(make_trainer):
    """As in cuDNN's recurrent layers: what else reads that memory must see the perturbation."""
    model, plain = Mlp(), Mlp()
    block = torch.cat([weight.detach().reshape(-1) for weight in model.parameters()])
    low = 0
    for weight in model.parameters():
        weight.data = block[low : low + weight.numel()].view(weight.shape)
        low += weight.numel()
    trainer, other = (make_trainer(SharpMinMax(0.8, overlap=False), model=m, max_steps=3) for m in (model, plain))
    assert trainer._step_context(trainer.model).in_place and not other._step_context(other.model).in_place
    trainer.train()
    other.train()
    assert_same(weights_of(trainer.model), weights_of(other.model))
    assert torch.equal(block, torch.cat([weight.detach().reshape(-1) for weight in model.parameters()]))


def test_a_buffer_that_is_a_view_of_a_weight_sees_the_perturbation(make_trainer):
    class Aliased(Mlp):
        def __init__(self):
            super().__init__()
            self.register_buffer("alias", self.second.weight.data)
            self.same = []

        def forward(self, x, labels=None):
            self.same.append(torch.equal(self.alias, self.second.weight))
            return super().forward(x, labels)

    trainer = make_trainer(NegGradPlus(0.8, SAM(0.2)), model=Aliased(), max_steps=2)
    trainer.train()
    assert len(trainer.model.same) == 8 and all(trainer.model.same)


def test_a_weight_with_gaps_in_memory_is_trained(make_trainer):
    model, plain = Mlp(), Mlp()
    block = torch.zeros(8, 12)
    block[:, :6] = model.first.weight.data
    model.first.weight.data = block[:, :6]
    for method in (SharpMinMax(0.8, overlap=False), NegGradPlus(0.8, SAM(0.2))):
        ends, start = [], weights_of(plain)
        for network in (model, plain):
            trainer = make_trainer(method, model=network, max_steps=2)
            trainer.train()
            ends.append(weights_of(trainer.model))
        assert_same_updates(ends[0], ends[1], start)


def test_a_gradient_too_small_to_be_scaled_is_no_perturbation(make_trainer):
    """rho / || g || must be a float32: the step is then the plain one, not inf."""

    def tiny(outputs, inputs):
        return outputs["logits"].square().mean() * 1e-42

    trainer = make_trainer(NegGradPlus(0.5, SAM(0.2), retain_loss=tiny, forget_loss=tiny), max_steps=2)
    trainer.train()
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())


@pytest.mark.parametrize("backend", ["tiled", "triton"])
def test_channels_last_weights(make_trainer, backend):
    """Masks and gradients are brought into the weights' order of memory.

    One step, and pixels enough for BatchNorm. On identical inputs the backends' perturbations, directions and updates
    are equal bit for bit; only their norms differ, by the order of summation (5e-8). On 8 x 8 pixels this network
    normalises four numbers at a time, and a norm of `reference` that is off by 1e-7 then moves weights by 1e-3 of their
    update in two steps (1e-4 in float64; all of it where a ReLU turns over): more than any two backends differ.

    8 channels at least: with 4, oneDNN writes past its workspace under AVX2 (uxlfoundation/oneDNN issue 6035).
    """
    shape = {"size": 32, "channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]}
    ends = []
    for name in ("reference", backend):
        model = timm_resnet(**shape).to(memory_format=torch.channels_last)
        trainer = make_trainer(
            SharpMinMax(0.8, overlap=False), model=model, data=images(24, size=32), max_steps=1, kernel_backend=name
        )
        trainer.train()
        ends.append(weights_of(trainer.model))
    assert_same_updates(ends[1], ends[0], weights_of(timm_resnet(**shape)))


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_parameters_of_two_dtypes(make_trainer, method):
    """One call of a kernel a dtype; the norm is that of both together."""

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.narrow, self.wide = Mlp(seed=1), Mlp(seed=2, dtype=torch.float64)

        def forward(self, x, labels=None):
            logits = self.narrow(x)["logits"].double() + self.wide(x)["logits"]
            loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
            return {"loss": loss, "logits": logits}

    trainer = make_trainer(method, model=Two(), max_steps=3)
    start = weights_of(trainer.model)
    trainer.train()
    assert differs(start, weights_of(trainer.model))
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())


def test_a_parameter_that_no_pass_reaches_stays_without_gradient_and_does_not_move(make_trainer):
    model = Mlp()
    model.unused = torch.nn.Parameter(torch.ones(5))
    trainer = make_trainer(SharpMinMax(0.8, overlap=False), model=model, max_steps=2, weight_decay=0.1)
    trainer.train()
    assert torch.equal(model.unused, torch.ones(5)) and model.unused not in trainer.optimizer.state
