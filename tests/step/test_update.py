"""From gradient to weights inside the trainer: backends, one-sweep optimizers, clipping, launches, bytes, cosines."""

import pytest
import torch
from parts import BatchNormNet, Mlp, assert_same, assert_same_updates, images, rows, timm_resnet, weights_of
from transformers import TrainerCallback

from hf_sharp_unlearn import ASAM, SAM, NegGradPlus, SharpMinMax
from hf_sharp_unlearn.kernels import BACKENDS, load, metered
from hf_sharp_unlearn.step import optim

DATA = rows(24, shape=(1, 5, 5))
METHODS = [NegGradPlus(0.8, SAM(0.2)), NegGradPlus(0.8, ASAM(1.0), "retain"), SharpMinMax(0.8, overlap=False),
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
    assert trainer._step_context(trainer.model).kernels is load("reference")
    found, _, trainer = trained(make_trainer, method, kernel_backend=backend, max_steps=3)
    assert trainer._step_context(trainer.model).kernels is load(backend)
    assert_same_updates(found, expected, weights_of(BatchNormNet()))


def test_auto_takes_tiled_on_a_cpu_and_an_impossible_backend_is_refused_at_once(make_trainer, monkeypatch):
    assert make_trainer("sharp_minmax")._step_context(None).kernels is load("tiled")
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
    trainer = make_trainer(SharpMinMax(0.8, overlap=False), optim=name, max_steps=2, weight_decay=0.01)
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
            SharpMinMax(0.8, overlap=False),
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
    assert_same_updates(ends[0], ends[1], weights_of(BatchNormNet()))
    torch.testing.assert_close(torch.tensor(looks[0].norms), torch.tensor(looks[1].norms), rtol=1e-4, atol=0)
    for step, norm in enumerate(looks[0].norms):
        assert looks[0].norm(step) == pytest.approx(norm, rel=1e-5), ".grad is the whole gradient, clipped in the sweep"
        clipped = min(norm, limit) if limit else norm
        assert looks[1].norm(step) == pytest.approx(clipped, rel=1e-4), ".grad is clipped for torch's optimizer"


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_clipping_and_norms_cost_no_sweep_of_torchs(make_trainer, monkeypatch, limit):
    def forbidden(*args, **kwargs):
        raise AssertionError("a sweep of its own")

    trainer = make_trainer(SharpMinMax(0.8, overlap=False), max_steps=2, max_grad_norm=limit)
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
    method = SharpMinMax(0.8, forget_loss=loss, overlap=False)
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
        sweeps, size = one_step(make_trainer, SharpMinMax(0.8, SAM(0.1), overlap=False), model, max_grad_norm=limit)
        tensors = len(list(model.parameters()))
        launches, moved = (sum(row[k] for row in sweeps) for k in (1, 2))
        found.append((tensors, launches, moved / size))
    assert found[0][0] < found[1][0] and found[0][1] == found[1][1] == 12
    for _, _, moved in found:
        # norms 8 + 1, two perturbations 2 * (12 + 1), compose 16 + 1, update 20: mask 1 byte
        assert moved == pytest.approx(72)


@pytest.mark.filterwarnings("ignore:.*independent of the scale")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw_torch"])
def test_no_table_is_made_from_the_tenth_step_on(make_trainer, optimizer):
    """Gradients get other addresses in every step, AdamW other numbers: they are written into tables that are kept."""
    rebuilds, rewrites = [], []

    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            rebuilds.append(meter.rebuilds)
            rewrites.append(meter.rewrites)

    trainer = make_trainer(SharpMinMax(0.8, ASAM(1.0), overlap=False), model=Mlp(), max_steps=14, optim=optimizer,
                           kernel_backend="triton", lr_scheduler_type="linear")  # fmt: skip
    trainer.add_callback(Count())
    with metered() as meter:
        trainer.train()
    assert rebuilds[0] > 0 and len(rebuilds) == 14
    assert rebuilds[9:] == [rebuilds[9]] * 5
    assert rewrites[-1] > rewrites[9], "the learning rate falls in every step"


def test_asam_reads_the_weights_once_more_for_its_norms(make_trainer):
    sweeps, size = one_step(make_trainer, SharpMinMax(0.8, ASAM(1.0), overlap=False), timm_resnet())
    assert sum(row[2] for row in sweeps) / size == pytest.approx(76)


def test_a_step_that_a_callback_prevented_is_not_the_next_one(make_trainer):
    class Stop(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            raise RuntimeError("stop")

    model = Mlp()
    optimizer = optim.SGD(model.parameters(), lr=1.0)
    trainer = make_trainer(
        SharpMinMax(0.8, overlap=False), model=model, max_grad_norm=1e-3, trainer={"optimizers": (optimizer, None)}
    )
    trainer.add_callback(Stop())
    with pytest.raises(RuntimeError, match="stop"):
        trainer.train()
    before, grads = weights_of(model), {name: weight.grad.clone() for name, weight in model.named_parameters()}
    optimizer.step()
    assert_same_updates(weights_of(model), {name: before[name] - grads[name] for name in before}, before)


@pytest.mark.filterwarnings("ignore:.*independent of the scale")
def test_an_optimizer_with_amsgrad_takes_torchs_step_with_the_clipped_gradient(make_trainer):
    ends = []
    for kind in (optim.AdamW, torch.optim.AdamW):
        model = Mlp()
        optimizer = kind(model.parameters(), lr=0.01, amsgrad=True)
        trainer = make_trainer(SharpMinMax(0.8, overlap=False), model=model, max_steps=3, max_grad_norm=0.01,
                               trainer={"optimizers": (optimizer, None)})  # fmt: skip
        trainer.train()
        ends.append(weights_of(model))
    assert_same(*ends)
