"""Whatever goes wrong, weights and BatchNorm buffers are as before the step, bit for bit, and nothing is swallowed."""

import pytest
import torch
from parts import BatchNormNet, Before, assert_same, differs, rows, weights_of
from transformers import TrainerCallback

from hf_sharp_unlearn import ASAM, SAM, NegGradPlus, SharpMinMax
from hf_sharp_unlearn.kernels import tiled, tiles

DATA = rows(24, shape=(1, 5, 5))
METHODS = [
    NegGradPlus(0.8),
    NegGradPlus(0.8, SAM(0.2)),
    NegGradPlus(0.8, ASAM(1.0), "forget"),
    SharpMinMax(0.8, overlap=False),
]


class Fault:
    """A loss that raises, or returns what it is given, at its n-th call."""

    def __init__(self, at, what):
        self.calls, self.at, self.what = 0, at, what

    def __call__(self, outputs, inputs):
        self.calls += 1
        if self.calls == self.at:
            if isinstance(self.what, BaseException):
                raise self.what
            return outputs["loss"] * self.what
        return outputs["loss"]


def passes_of(method):
    return range(1, 2 * method.passes + 1)


def run_with(make_trainer, method, fault, error):
    method = type(method)(**{**vars(method), "retain_loss": fault, "forget_loss": fault})
    trainer = make_trainer(method, model=BatchNormNet(), data=DATA, max_steps=3, per_device_train_batch_size=4)
    trainer.add_callback(before := Before())
    original = None if method.fraction is None else trainer._make_partition
    if original is not None:  # the fault counts training passes only

        def make():
            fault.calls = -(10**6)
            partition = original()
            fault.calls = 0
            return partition

        trainer._make_partition = make
    with pytest.raises(error) as raised:
        trainer.train()
    assert_same(before.state, weights_of(trainer.model))
    assert all(weight.grad is None for weight in trainer.model.parameters())
    return trainer, raised


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_an_exception_in_any_pass(make_trainer, method, error):
    calls = 6 if method == METHODS[2] else 4 * method.passes  # two steps' worth
    reached = 0
    for call in range(1, calls + 1):
        trainer, raised = run_with(make_trainer, method, Fault(call, error), type(error))
        assert raised.value is error
        reached = max(reached, trainer.state.global_step)
    assert reached == 1, "both the first and a later step were hit"


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_loss_names_pass_and_step(make_trainer, method, value):
    words = set()
    for call in range(1, 3 * method.passes + 1):
        _, raised = run_with(make_trainer, method, Fault(call, value), FloatingPointError)
        message = str(raised.value)
        assert "step 1" in message or "step 2" in message
        assert "retain" in message or "forget" in message
        words |= {word for word in ("clean", "perturbed") if word in message}
    assert words == ({"clean"} if method.perturbation is None else {"clean", "perturbed"})


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float("inf")


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_finite_loss_with_a_non_finite_gradient(make_trainer, method):
    class Bad(Fault):
        def __call__(self, outputs, inputs):
            self.calls += 1
            loss = outputs["loss"]
            return InfiniteGradient.apply(loss) if self.calls == self.at else loss

    for call in passes_of(method):
        run_with(make_trainer, method, Bad(call, None), FloatingPointError)


class Interrupt:
    """Wraps a function: a KeyboardInterrupt before, or after, its n-th call."""

    def __init__(self, function, at, after=False):
        self.function, self.at, self.after, self.calls = function, at, after, 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls == self.at and not self.after:
            raise KeyboardInterrupt
        result = self.function(*args, **kwargs)
        if self.calls == self.at:
            raise KeyboardInterrupt
        return result


@pytest.mark.parametrize("method", METHODS[1:], ids=str)
@pytest.mark.parametrize("in_place", [False, True], ids=["shadow", "in place"])
@pytest.mark.parametrize("tensor", [1, 3, 13])
@pytest.mark.parametrize("after", [False, True])
def test_an_interrupt_in_the_middle_of_a_sweep(make_trainer, monkeypatch, method, in_place, tensor, after):
    """Ctrl-C before or after some tensor of the first or of a later step: the weights are those of before the step, and
    no backup of an earlier step comes back."""
    trainer = make_trainer(method, model=BatchNormNet(), data=DATA, max_steps=4)
    monkeypatch.setattr("hf_sharp_unlearn.step.context.must_stay", lambda module: in_place)
    trainer.add_callback(before := Before())
    monkeypatch.setattr(tiles, "SMALL", 0)  # a tensor at a time, small as they are
    monkeypatch.setattr(tiled, "_displace", wrapped := Interrupt(tiled._displace, tensor, after))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert wrapped.calls == tensor
    assert_same(before.state, weights_of(trainer.model))


@pytest.mark.parametrize("method", METHODS[1:], ids=str)
@pytest.mark.parametrize("step", [1, 2])
def test_an_interrupt_in_the_middle_of_a_restore(make_trainer, monkeypatch, method, step):
    """In place: some tensors are back, the others still perturbed."""

    class Sudden(list):
        def pop(self):
            value = super().pop()
            if len(self) == 3:
                raise KeyboardInterrupt
            return value

    calls, real = [], tiled.restore

    def interrupted(weights, backups, saved):
        calls.append(len(saved))
        if len(calls) != step:
            return real(weights, backups, saved)
        sudden = Sudden(saved)
        try:
            real(weights, backups, sudden)
        finally:
            saved[:] = sudden

    trainer = make_trainer(method, model=BatchNormNet(), data=DATA, max_steps=4)
    monkeypatch.setattr("hf_sharp_unlearn.step.context.must_stay", lambda module: True)
    monkeypatch.setattr(tiles, "SMALL", 0)
    monkeypatch.setattr(tiled, "restore", interrupted)
    trainer.add_callback(before := Before())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert calls[step:] == [3], "the rest is put back by `undo`"
    assert_same(before.state, weights_of(trainer.model))


@pytest.mark.parametrize("method", METHODS[1:], ids=str)
def test_an_interrupt_while_parameters_are_pointed_back(make_trainer, monkeypatch, method):
    from hf_sharp_unlearn.step.sweeps import Sweeps

    real, calls = Sweeps.back, []

    def interrupted(self):
        calls.append(len(calls))
        if len(calls) == 1:
            self._params[0].data = self._weights[0]
            raise KeyboardInterrupt
        real(self)

    trainer = make_trainer(method, model=BatchNormNet(), data=DATA, max_steps=4)
    monkeypatch.setattr(Sweeps, "back", interrupted)
    trainer.add_callback(before := Before())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert len(calls) == 2
    assert_same(before.state, weights_of(trainer.model))


@pytest.mark.parametrize("method", METHODS[1:], ids=str)
def test_in_place_and_shadow_are_the_same_step(make_trainer, monkeypatch, method):
    ends = []
    for in_place in (False, True):
        monkeypatch.setattr("hf_sharp_unlearn.step.context.must_stay", lambda module, value=in_place: value)
        trainer = make_trainer(method, model=BatchNormNet(), data=DATA)
        addresses = [weight.data_ptr() for weight in trainer.model.parameters()]
        trainer.train()
        assert addresses == [weight.data_ptr() for weight in trainer.model.parameters()]
        ends.append(weights_of(trainer.model))
    assert_same(*ends)


@pytest.mark.parametrize("in_place", [False, True])
def test_in_place_keeps_the_addresses_that_a_captured_graph_reads(make_trainer, in_place):
    """In the passes, and perturbed there all the same."""
    seen = set()

    def look(model, inputs):
        weight = model.head.weight
        seen.add((weight.data_ptr(), tuple(weight.detach().flatten().tolist())))

    trainer = make_trainer(METHODS[1], model=BatchNormNet(), data=DATA, max_steps=1, in_place=in_place)
    trainer.model.register_forward_pre_hook(look)
    trainer.train()
    addresses, values = ({pair[k] for pair in seen} for k in (0, 1))
    assert (len(addresses) == 1) == in_place and len(values) > 1


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_only_clean_retain_passes_move_batchnorm(make_trainer, method):
    """Statistics after a run are those of the retain batches alone, forwarded at the unperturbed weights."""
    trainer = make_trainer(method, model=BatchNormNet(), data=DATA, max_steps=1)
    reference_model = BatchNormNet()
    batch = next(iter(trainer.get_train_dataloader()))
    reference_model.train()
    reference_model(**batch["retain"])
    trainer.train()
    for name, value in reference_model.named_buffers():
        assert torch.equal(value, trainer.model.get_buffer(name)), name


def test_methods_without_a_retain_stream_freeze_batchnorm(make_trainer):
    trainer = make_trainer(NegGradPlus(0.0), model=BatchNormNet(), data=DATA)
    start = weights_of(trainer.model)
    trainer.train()
    end = weights_of(trainer.model)
    for name, _ in trainer.model.named_buffers():
        assert torch.equal(start[name], end[name])
    assert differs(start, end)


def test_weights_are_back_when_callbacks_see_the_step(make_trainer):
    """A checkpoint written before the optimizer steps holds the weights of the step before."""

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, model, **kwargs):
            self.begin = weights_of(model)

        def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
            buffers = dict(model.named_buffers())
            now = weights_of(model)
            assert_same({k: v for k, v in self.begin.items() if k not in buffers},
                        {k: v for k, v in now.items() if k not in buffers})  # fmt: skip
            self.seen = True

    trainer = make_trainer(
        SharpMinMax(0.8, overlap=False), model=BatchNormNet(), data=DATA, gradient_accumulation_steps=2
    )
    trainer.add_callback(look := Look())
    trainer.train()
    assert look.seen


class Odd(torch.nn.Module):
    """A buffer that forward replaces by another tensor, and one that no one can write to."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = BatchNormNet()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("expanded", torch.zeros(1).expand(5))

    def forward(self, x, labels=None):
        self.count = self.count + 1
        return self.net(x, labels)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_buffers_that_forward_replaces_are_put_back_too(make_trainer, method):
    trainer = make_trainer(method, model=Odd(), data=DATA, max_steps=2)
    trainer.train()
    assert trainer.model.count == 2, "two clean retain passes"
    fault = Fault(1, RuntimeError("boom"))
    trainer = make_trainer(NegGradPlus(0.8, forget_loss=fault), model=Odd(), data=DATA, max_steps=2)
    with pytest.raises(RuntimeError, match="boom"):
        trainer.train()
    assert trainer.model.count == 0


@pytest.mark.parametrize("where", ["broadcast_first", "norm"])
def test_an_interrupt_after_the_last_pass(make_trainer, monkeypatch, where):
    """While buffers are shared out, or while Trainer takes the norm for clipping."""
    trainer = make_trainer(SharpMinMax(0.8, overlap=False), model=BatchNormNet(), data=DATA, max_steps=2)
    trainer.add_callback(before := Before())

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    if where == "norm":
        from transformers import Trainer

        monkeypatch.setattr(Trainer, "_get_grad_norm", interrupted)
    else:
        monkeypatch.setattr("hf_sharp_unlearn.step.window.broadcast_first", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert_same(before.state, weights_of(trainer.model))
    assert all(weight.grad is None for weight in trainer.model.parameters())
