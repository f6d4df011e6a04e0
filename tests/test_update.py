"""From gradient to weights inside the trainer: backends, one-sweep optimizers, clipping, launches, bytes, cosines."""

import math

import pytest
import torch
from parts import BatchNormNet, Mlp, assert_same, differs, images, rows, timm_resnet, weights_of
from transformers import TrainerCallback

from hf_sharp_unlearn import ASAM, SAM, NegGradPlus, SharpMinMax, optim
from hf_sharp_unlearn.kernels import BACKENDS, load, metered
from hf_sharp_unlearn.sharpness import realised_cosine

DATA = rows(24, shape=(1, 5, 5))
METHODS = [NegGradPlus(0.8, SAM(0.2)), NegGradPlus(0.8, ASAM(1.0), "retain"), SharpMinMax(0.8),
           SharpMinMax(0.8, SAM(0.2), scope="all", overlap=True, lam_retain=0.5, lam_forget=0.5)]  # fmt: skip


class Look(TrainerCallback):
    """Gradients as a callback sees them before the optimizer's step, and the norms that were logged."""

    def __init__(self):
        self.grads, self.norms = [], []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.grads.append({name: weight.grad.clone() for name, weight in model.named_parameters()})

    def on_log(self, args, state, control, logs, **kwargs):
        if "grad_norm" in logs:
            self.norms.append(logs["grad_norm"])

    def norm(self, step):
        return torch.cat([grad.reshape(-1) for grad in self.grads[step].values()]).norm().item()


def trained(make_trainer, method, **arguments):
    trainer = make_trainer(method, model=BatchNormNet(), data=DATA, logging_strategy="steps", logging_steps=1,
                           **arguments)  # fmt: skip
    trainer.add_callback(look := Look())
    trainer.train()
    return weights_of(trainer.model), look, trainer


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("backend", ["tiled", "triton"])
def test_training_is_the_same_on_every_backend(make_trainer, method, backend):
    expected, _, trainer = trained(make_trainer, method, kernel_backend="reference", max_steps=3)
    assert trainer._kernels is load("reference")
    found, _, trainer = trained(make_trainer, method, kernel_backend=backend, max_steps=3)
    assert trainer._kernels is load(backend)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


def test_auto_takes_tiled_on_a_cpu_and_an_impossible_backend_is_refused_at_once(make_trainer, monkeypatch):
    assert make_trainer("sharp_minmax")._kernels is load("tiled")
    with pytest.raises(ValueError, match=f"kernel_backend='cuda': must be 'auto' or one of .*{sorted(BACKENDS)[0]}"):
        make_trainer("sharp_minmax", kernel_backend="cuda")
    with pytest.raises(ValueError, match="kernel_backend='triton'.*float64"):
        make_trainer("sharp_minmax", model=Mlp(dtype=torch.float64), kernel_backend="triton")
    monkeypatch.setattr(load("triton"), "INTERPRETED", False)
    with pytest.raises(ValueError, match="kernel_backend='triton': Triton needs a GPU"):
        make_trainer("sharp_minmax", kernel_backend="triton")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sgd", optim.SGD), ("adamw_torch", optim.AdamW), ("adamw_torch_fused", optim.AdamW), ("adagrad", None)],
)
@pytest.mark.filterwarnings("ignore:.*independent of the scale")
def test_the_one_sweep_optimizers_are_the_default_for_a_partition(make_trainer, name, kind):
    trainer = make_trainer(SharpMinMax(0.8), optim=name, max_steps=2, weight_decay=0.01)
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert type(optimizer) is (kind or torch.optim.Adagrad)
    plain = make_trainer(NegGradPlus(0.8), optim=name, max_steps=1)
    plain.train()
    assert not isinstance(plain.optimizer.optimizer, optim.SGD | optim.AdamW), "nothing to fuse: torch's own"


@pytest.mark.parametrize("limit", [0.0, 0.05, 1.0, 1e9])
@pytest.mark.parametrize(
    ("ours", "torchs", "options"),
    [
        (optim.SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
        (optim.AdamW, torch.optim.AdamW, {"lr": 0.01, "eps": 1e-2}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*independent of the scale")
def test_a_one_sweep_run_equals_a_run_with_torchs_optimizer(make_trainer, limit, ours, torchs, options):
    """Clipping included; the logged norm is that of the composed gradient before clipping."""
    ends, looks = [], []
    for kind in (ours, torchs):
        model = BatchNormNet()
        optimizer = kind(model.parameters(), **options)
        trainer = make_trainer(
            SharpMinMax(0.8),
            model=model,
            data=DATA,
            max_steps=4,
            max_grad_norm=limit,
            logging_strategy="steps",
            logging_steps=1,
            trainer={"optimizers": (optimizer, None)},
        )
        trainer.add_callback(look := Look())
        trainer.train()
        ends.append(weights_of(trainer.model))
        looks.append(look)
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.tensor(looks[0].norms), torch.tensor(looks[1].norms), rtol=1e-4, atol=0)
    for step, norm in enumerate(looks[0].norms):
        assert looks[0].norm(step) == pytest.approx(norm, rel=1e-5), ".grad is the whole gradient, clipped in the sweep"
        clipped = min(norm, limit) if limit else norm
        assert looks[1].norm(step) == pytest.approx(clipped, rel=1e-4), ".grad is clipped for torch's optimizer"


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_clipping_and_norms_cost_no_sweep_of_torchs(make_trainer, monkeypatch, limit):
    def forbidden(*args, **kwargs):
        raise AssertionError("a sweep of its own")

    trainer = make_trainer(SharpMinMax(0.8), max_steps=2, max_grad_norm=limit)
    monkeypatch.setattr(trainer.accelerator, "clip_grad_norm_", forbidden)
    monkeypatch.setattr(torch, "_foreach_mul_", forbidden)
    trainer.train()


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_a_non_finite_composed_gradient_leaves_weights_and_moments(make_trainer, limit):
    """Also without clipping: the norm is known before the optimizer moves anything."""

    class Blow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * float("inf")

    calls = []

    def loss(outputs, inputs):
        calls.append(1)
        value = torch.nn.functional.cross_entropy(outputs["logits"], inputs["labels"])
        return Blow.apply(value) if len(calls) == 4 and torch.is_grad_enabled() else value

    class Count(TrainerCallback):
        def on_step_begin(self, args, state, control, model, optimizer, **kwargs):
            calls.clear()
            self.weights = weights_of(model)
            self.state = {k: v["momentum_buffer"].clone() for k, v in optimizer.state.items()}

    # Forget-set calls alternate clean, perturbed; with accumulation 2 the fourth is a perturbed one.
    method = SharpMinMax(0.8, forget_loss=loss)
    trainer = make_trainer(method, max_steps=4, max_grad_norm=limit, gradient_accumulation_steps=2)
    trainer.add_callback(count := Count())
    with pytest.raises(FloatingPointError, match="Non-finite norm of the gradient of step 1"):
        trainer.train()
    assert_same(count.weights, weights_of(trainer.model))
    for weight, before in count.state.items():
        assert torch.equal(trainer.optimizer.state[weight]["momentum_buffer"], before)


def one_step(make_trainer, method, model, **arguments):
    """Sweeps of one optimizer step under the Triton backend, and the number of trainable parameters."""
    trainer = make_trainer(method, model=model, data=images(24), max_steps=2, kernel_backend="triton", **arguments)
    sweeps = {}

    class Steps(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            sweeps["first"] = len(sweeps["meter"].sweeps)

    trainer.add_callback(Steps())
    with metered() as meter:
        sweeps["meter"] = meter
        trainer.train()
    size = sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
    return meter.sweeps[sweeps["first"] :], size  # those of the last step


@pytest.mark.parametrize("limit", [0.0, 1.0], ids=["no clipping", "clipping"])
def test_a_step_is_at_most_12_launches_and_86_bytes_a_parameter(make_trainer, limit):
    """Both halves, lam = 1, one dtype, SGD with momentum, uint8 mask; whatever the number of tensors. The tensors are
    of both kinds, walked 16 bytes at a time and not, so every sweep is two launches."""
    found = []
    for blocks in ([1, 1, 1, 1], [2, 2, 2, 2]):
        model = timm_resnet(channels=[16, 16, 16, 20], layers=blocks)
        sweeps, size = one_step(make_trainer, SharpMinMax(0.8, SAM(0.1)), model, max_grad_norm=limit)
        tensors = len(list(model.parameters()))
        launches, moved = (sum(row[k] for row in sweeps) for k in (1, 2))
        found.append((tensors, launches, moved / size))
    assert found[0][0] < found[1][0] and found[0][1] == found[1][1] == 12
    for _, _, moved in found:
        # norms 8 + 1, two perturbations 2 * (12 + 1), compose 16 + 1, update 20: mask 1 byte
        assert moved == pytest.approx(72)


def test_asam_reads_the_weights_once_more_for_its_norms(make_trainer):
    sweeps, size = one_step(make_trainer, SharpMinMax(0.8, ASAM(1.0)), timm_resnet())
    assert sum(row[2] for row in sweeps) / size == pytest.approx(76)


def test_perturbation_cosine_is_logged_on_request(make_trainer):
    _, _, trainer = trained(make_trainer, SharpMinMax(0.8), max_steps=2, log_perturbation=True)
    values = [entry["perturbation_cosine"] for entry in trainer.state.log_history if "perturbation_cosine" in entry]
    assert len(values) == 2 and all(value == pytest.approx(1, abs=1e-6) for value in values)
    _, _, trainer = trained(make_trainer, SharpMinMax(0.8), max_steps=2)
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
    for method in (SharpMinMax(0.8), NegGradPlus(0.8, SAM(0.1))):
        with pytest.raises(ValueError, match="first.bias and second.bias are separate parameters over the same memory"):
            make_trainer(method, model=model)
    make_trainer(NegGradPlus(0.8), model=model)
    tied = Mlp()
    tied.again = tied.second  # one Parameter under two names is a tied weight
    make_trainer(SharpMinMax(0.8), model=tied, max_steps=2).train()


def test_a_parameter_in_a_larger_block_is_perturbed_where_it_is(make_trainer):
    """As in cuDNN's recurrent layers: what else reads that memory must see the perturbation."""
    model, plain = Mlp(), Mlp()
    block = torch.cat([weight.detach().reshape(-1) for weight in model.parameters()])
    low = 0
    for weight in model.parameters():
        weight.data = block[low : low + weight.numel()].view(weight.shape)
        low += weight.numel()
    trainer, other = (make_trainer(SharpMinMax(0.8), model=m, max_steps=3) for m in (model, plain))
    assert trainer._in_place and not other._in_place
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
    for method in (SharpMinMax(0.8), NegGradPlus(0.8, SAM(0.2))):
        ends = []
        for network in (model, plain):
            trainer = make_trainer(method, model=network, max_steps=2)
            trainer.train()
            ends.append(weights_of(trainer.model))
        for name in ends[0]:
            torch.testing.assert_close(ends[0][name], ends[1][name])


def test_a_step_that_a_callback_prevented_is_not_the_next_one(make_trainer):
    class Stop(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            raise RuntimeError("stop")

    model = Mlp()
    optimizer = optim.SGD(model.parameters(), lr=1.0)
    trainer = make_trainer(SharpMinMax(0.8), model=model, max_grad_norm=1e-3, trainer={"optimizers": (optimizer, None)})
    trainer.add_callback(Stop())
    with pytest.raises(RuntimeError, match="stop"):
        trainer.train()
    before, grads = weights_of(model), {name: weight.grad.clone() for name, weight in model.named_parameters()}
    optimizer.step()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.detach(), before[name] - grads[name])


@pytest.mark.filterwarnings("ignore:.*independent of the scale")
def test_an_optimizer_with_amsgrad_takes_torchs_step_with_the_clipped_gradient(make_trainer):
    ends = []
    for kind in (optim.AdamW, torch.optim.AdamW):
        model = Mlp()
        optimizer = kind(model.parameters(), lr=0.01, amsgrad=True)
        trainer = make_trainer(SharpMinMax(0.8), model=model, max_steps=3, max_grad_norm=0.01,
                               trainer={"optimizers": (optimizer, None)})  # fmt: skip
        trainer.train()
        ends.append(weights_of(model))
    assert_same(*ends)


def test_a_gradient_too_small_to_be_scaled_is_no_perturbation(make_trainer):
    """rho / || g || must be a float32: the step is then the plain one, not inf."""

    def tiny(outputs, inputs):
        return outputs["logits"].square().mean() * 1e-42

    trainer = make_trainer(NegGradPlus(0.5, SAM(0.2), retain_loss=tiny, forget_loss=tiny), max_steps=2)
    trainer.train()
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())


@pytest.mark.parametrize("backend", ["tiled", "triton"])
def test_channels_last_weights(make_trainer, backend):
    """Masks and gradients are brought into the weights' order of memory."""
    ends = []
    for name in ("reference", backend):
        model = timm_resnet().to(memory_format=torch.channels_last)
        trainer = make_trainer(SharpMinMax(0.8), model=model, data=images(24), max_steps=2, kernel_backend=name)
        trainer.train()
        ends.append(weights_of(trainer.model))
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-4, atol=1e-6)


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
    trainer = make_trainer(SharpMinMax(0.8), model=model, max_steps=2, weight_decay=0.1)
    trainer.train()
    assert torch.equal(model.unused, torch.ones(5)) and model.unused not in trainer.optimizer.state
