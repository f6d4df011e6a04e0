"""The one-sweep optimizers: equal to torch's, interchangeable with them, and exact where torch is."""

import copy

import pytest
import torch
from kernel_parts import DEVICE, HERE, SHAPES, assert_equal, backends, bool_masks, copies, tensors

from hf_sharp_unlearn import optim
from hf_sharp_unlearn.kernels import SGD, Direction, reference

SETTINGS = [
    (optim.SGD, {"lr": 0.1}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "maximize": True}),
    (optim.AdamW, {"lr": 0.01}),
    (optim.AdamW, {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1, "maximize": True}),
]
names = [f"{cls.__name__}-{'-'.join(options)}" for cls, options in SETTINGS]
each = pytest.mark.parametrize(("cls", "options"), SETTINGS, ids=names)
staged = pytest.mark.parametrize("backend", HERE)


def parameters(dtype=torch.float32, seed=1):
    return [torch.nn.Parameter(value) for value in tensors(seed, dtype)]


def groups(params):
    """Two groups, as Trainer makes them: with and without decay, with learning rates of their own."""
    return [{"params": params[::2]}, {"params": params[1::2], "weight_decay": 0.0, "lr": 0.03}]


def run(cls, options, dtype, steps, backend=None, start=None, scale=1.0):
    """Steps along fixed gradients; every third gradient of weight 3 is None. Returns parameters and optimizer."""
    params = parameters(dtype) if start is None else start
    optimizer = cls(groups(params), **options)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for step in range(steps):
        for i, (param, grad) in enumerate(zip(params, tensors(50 + step, dtype), strict=True)):
            param.grad = None if i == 3 and step % 3 == 1 else grad * (scale if backend is None else 1)
        if backend is not None:
            optimizer.stage(scale=scale, backend=backend)
        optimizer.step()
        schedule.step()
    return params, optimizer


@each
@staged
def test_a_staged_step_equals_torch(cls, options, backend):
    """Param groups, a schedule, first steps, None gradients, a clipping coefficient."""
    ours, mine = run(cls, options, torch.float32, 4, backend, scale=0.5)
    theirs, other = run(cls._torch, options, torch.float32, 4, scale=0.5)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert mine.state_dict().keys() == other.state_dict().keys()
    for key, state in other.state_dict()["state"].items():
        assert mine.state_dict()["state"][key].keys() == {k for k, v in state.items() if v is not None}
        for name, value in state.items():
            if value is not None:
                torch.testing.assert_close(mine.state_dict()["state"][key][name], value, rtol=1e-5, atol=1e-6)


@each
@staged
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_error_against_float64_is_at_most_twice_torchs(cls, options, backend, dtype):
    def error(params, exact):
        return max((a.double() - b).abs().max().item() for a, b in zip(params, exact, strict=True) if a.numel())

    # Weights and gradients are rounded to dtype in all three runs: only the computation differs.
    start = [torch.nn.Parameter(value.double()) for value in tensors(1, dtype)]
    exact = cls._torch(groups(start), **options)
    schedule = torch.optim.lr_scheduler.ExponentialLR(exact, 0.9)
    for step in range(3):
        for i, (param, grad) in enumerate(zip(start, tensors(50 + step, dtype), strict=True)):
            param.grad = None if i == 3 and step % 3 == 1 else grad.double()
        exact.step()
        schedule.step()
    exact = [param.detach() for param in start]
    ours, _ = run(cls, options, dtype, 3, backend)
    theirs, _ = run(cls._torch, options, dtype, 3)
    assert error(ours, exact) <= 2 * error(theirs, exact)


@each
@staged
def test_state_dicts_go_either_way(cls, options, backend):
    """torch, ours, torch: six steps in all, as six of torch's alone."""
    expected, _ = run(cls._torch, options, torch.float32, 6)
    params = parameters()
    state = None
    for first, kind in ((0, cls._torch), (2, cls), (4, cls._torch)):
        optimizer = kind(groups(params), **options)
        if state is not None:
            optimizer.load_state_dict(copy.deepcopy(state))
        for group, base in zip(optimizer.param_groups, (options["lr"], 0.03), strict=True):
            group["lr"] = base * 0.9**first
        for step in range(first, first + 2):
            for i, (param, grad) in enumerate(zip(params, tensors(50 + step), strict=True)):
                param.grad = None if i == 3 and step % 3 == 1 else grad
            if kind is cls:
                optimizer.stage(backend=backend)
            optimizer.step()
            for group in optimizer.param_groups:
                group["lr"] *= 0.9
        state = optimizer.state_dict()
    for a, b in zip(params, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@each
def test_a_plain_step_is_torchs_own_bit_for_bit(cls, options):
    ours, mine = run(cls, options, torch.float32, 3)
    theirs, _ = run(cls._torch, options, torch.float32, 3)
    assert_equal(ours, theirs)
    assert isinstance(mine, cls._torch)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_of_bfloat16_weights_are_float32_and_survive_a_checkpoint(cls, options, dtype):
    whole, _ = run(cls, options, dtype, 4, "reference")
    params = parameters(dtype)
    state = None
    for first in (0, 2):
        optimizer = cls(groups(params), **options)
        if state is not None:
            optimizer.load_state_dict(copy.deepcopy(state))
        for step in range(first, first + 2):
            for i, (param, grad) in enumerate(zip(params, tensors(50 + step, dtype), strict=True)):
                param.grad = None if i == 3 and step % 3 == 1 else grad
            for group, base in zip(optimizer.param_groups, (options["lr"], 0.03), strict=True):
                group["lr"] = base
                for _ in range(step):
                    group["lr"] *= 0.9
            optimizer.stage(backend="reference")
            optimizer.step()
        state = optimizer.state_dict()
    assert_equal(params, whole)
    for moments in optimizer.state.values():
        assert all(v.dtype == torch.float32 for v in moments.values())


@backends
def test_fp32_sgd_is_bit_equal_to_a_written_out_step_without_fused_multiply_adds(kernels):
    """Products and sums rounded one by one, as numpy does it."""
    w, d, v = (tensors(seed) for seed in (1, 2, 3))
    lr, momentum, decay = (torch.tensor(x, dtype=torch.float32).numpy() for x in (0.1, 0.9, 0.01))
    expected = []
    for x, g, m in zip(w, d, v, strict=True):
        x, g, m = (y.cpu().numpy() for y in (x, g, m))
        moment = m * momentum + (g + x * decay)
        expected.append(torch.from_numpy(x - moment * lr).to(DEVICE))
    kernels.sgd(w, Direction(r0=d), v, [SGD(0.1, 0.9, 0.0, 0.01)] * len(w))
    assert_equal(w, expected)


@each
@staged
@pytest.mark.parametrize("perturbed", [False, True])
def test_a_direction_is_composed_and_stepped_along_in_one_sweep(cls, options, backend, perturbed):
    """The same as composing it into `.grad` first; perturbed weights are restored on the way."""
    from hf_sharp_unlearn.kernels import load

    kernels = load(backend)
    r1, f0, f1 = (tensors(seed) for seed in (11, 12, 13))
    ends = []
    for fused in (False, True):
        params = parameters()
        optimizer = cls(groups(params), **options)
        detached = [param.detach() for param in params]
        masks = kernels.pack(bool_masks(), detached)
        direction = Direction(None, copies(r1), copies(f0), copies(f1), masks)
        if fused:
            backups = copies(detached) if perturbed else None
            if perturbed:
                for param in detached:
                    param.add_(1.0)
            optimizer.stage(params, direction, scale=0.5, backups=backups, norm=True, backend=backend)
        else:
            for param, grad in zip(params, kernels.compose(direction)[0], strict=True):
                param.grad = grad
            optimizer.stage(scale=0.5, norm=True, backend=backend)
        squares = optimizer.step()
        ends.append((params, squares))
    assert_equal(ends[0][0], ends[1][0])
    torch.testing.assert_close(ends[0][1], ends[1][1])


@each
@staged
@pytest.mark.parametrize("inf", [0.0, 1.0])
def test_found_inf_restores_and_skips_and_grad_scale_divides(cls, options, backend, inf):
    """As torch.amp.GradScaler hands them over: attributes of the optimizer, tensors on the device."""
    plain = parameters()
    reference_step = cls(groups(plain), **options)
    params = parameters()
    optimizer = cls(groups(params), **options)
    for a, b, grad in zip(plain, params, tensors(50), strict=True):
        a.grad, b.grad = grad, grad * 1024
    true = copies([param.detach() for param in params])
    reference_step.stage(backend=backend)
    reference_step.step()
    for param in params:
        param.data.add_(1.0)
    optimizer.stage(params, Direction(r0=[param.grad for param in params]), backups=copies(true), backend=backend)
    assert optimizer._step_supports_amp_scaling
    optimizer.grad_scale = torch.tensor(1024.0, device=DEVICE)
    optimizer.found_inf = torch.tensor(inf, device=DEVICE)
    optimizer.step()
    assert_equal(params, true if inf else plain)
    if inf:
        del optimizer.grad_scale, optimizer.found_inf
        for param, grad in zip(params, tensors(50), strict=True):
            param.grad = grad
        optimizer.stage(backend=backend)
        optimizer.step()
        assert_equal(params, plain)


def test_staging_is_for_one_step_and_hooks_run_once():
    torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)  # torch wraps its class's step when first used
    param = torch.nn.Parameter(torch.ones(4, device=DEVICE))
    optimizer, calls = optim.SGD([param], lr=0.1), []
    optimizer.register_step_pre_hook(lambda *a: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *a: calls.append("post"))
    param.grad = torch.ones(4, device=DEVICE)
    optimizer.stage(scale=0.5)
    optimizer.step()
    assert calls == ["pre", "post"] and param[0].item() == pytest.approx(0.95)
    optimizer.step()
    assert calls == ["pre", "post"] * 2 and param[0].item() == pytest.approx(0.85)


def test_bad_staging_is_refused():
    param = torch.nn.Parameter(torch.ones(4))
    optimizer = optim.SGD([param], lr=0.1)
    with pytest.raises(ValueError, match="pass both"):
        optimizer.stage([param])
    with pytest.raises(ValueError, match=r"weights\[0\] is no parameter"):
        optimizer.stage([torch.nn.Parameter(torch.ones(4))], Direction(r0=[torch.ones(4)]))
    with pytest.raises(ValueError, match="backups without weights"):
        optimizer.stage(backups=[torch.ones(4)])
    for short in ({"r0": []}, {"r0": [torch.ones(4)] * 2}):
        with pytest.raises(ValueError, match="r0 has . tensors, weights has 1"):
            optimizer.stage([param], Direction(**short))
    with pytest.raises(ValueError, match="backups has 2 tensors"):
        optimizer.stage([param], Direction(r0=[torch.ones(4)]), backups=[torch.ones(4)] * 2)
    optimizer.stage()
    with pytest.raises(ValueError, match="step\\(closure\\) after stage"):
        optimizer.step(lambda: 0)
    with pytest.raises(ValueError, match="amsgrad=True"):
        optim.AdamW([param], amsgrad=True).stage()
    assert optim.sweeping(torch.optim.AdamW, {"lr": 1, "fused": True}) == (optim.AdamW, {"lr": 1})
    assert optim.sweeping(torch.optim.AdamW, {"amsgrad": True}) is None
    assert optim.sweeping(torch.optim.Adagrad, {}) is None


def test_frozen_elements_and_unnamed_weights_do_not_move():
    """A direction that is zero on a part moves nothing there without decay; weights that are not named stay."""
    params = parameters()
    optimizer = optim.SGD(params, lr=0.1, momentum=0.9)
    start = copies([param.detach() for param in params])
    masks = reference.pack(bool_masks(), start)
    named = [1, 4, 7]
    direction = Direction(f0=[tensors(2)[i] for i in named], masks=[masks[i] for i in named])
    optimizer.stage([params[i] for i in named], direction, backend="reference")
    optimizer.step()
    for i, (param, before, mask) in enumerate(zip(params, start, bool_masks(), strict=True)):
        moved = param.detach() != before
        assert torch.equal(moved, mask) if i in named else not moved.any()
    assert len(params) == len(SHAPES)


@each
def test_a_copy_and_a_pickle_of_an_optimizer_step_on(cls, options):
    import pickle

    params = parameters()
    optimizer = cls(params, **options)
    for i, (param, grad) in enumerate(zip(params, tensors(50), strict=True)):
        param.grad = None if i == 3 else grad
    optimizer.stage(backend="reference")
    for again in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert again._staged is None
        for i, (param, grad) in enumerate(zip(again.param_groups[0]["params"], tensors(50), strict=True)):
            param.grad = None if i == 3 else grad
        again.step()
    optimizer.unstage()
    optimizer.step()
    assert_equal(again.param_groups[0]["params"], params)


@each
def test_bfloat16_weights_may_mix_staged_and_plain_steps(cls, options):
    """Plain steps then keep the float32 moments too, also from a state dict of torch's."""
    whole, _ = run(cls, options, torch.bfloat16, 2, "auto")
    params = parameters(torch.bfloat16)
    optimizer = cls(groups(params), **options)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for step in range(2):
        for i, (param, grad) in enumerate(zip(params, tensors(50 + step, torch.bfloat16), strict=True)):
            param.grad = None if i == 3 and step % 3 == 1 else grad
        if step == 0:
            optimizer.stage()
        optimizer.step()
        schedule.step()
    if options.get("momentum") or cls is optim.AdamW:
        assert_equal(params, whole)
    theirs, other = run(cls._torch, options, torch.bfloat16, 1)
    mine = cls(groups(theirs), **options)
    mine.load_state_dict(copy.deepcopy(other.state_dict()))
    for param, grad in zip(theirs, tensors(51, torch.bfloat16), strict=True):
        param.grad = grad
    mine.step()
    assert all(torch.isfinite(param).all() for param in theirs)


@each
@staged
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy's, in Triton's interpreter
def test_a_staged_direction_that_is_not_finite_is_skipped_under_a_scaler(cls, options, backend):
    params = parameters()
    optimizer = cls(groups(params), **options)
    start = copies([param.detach() for param in params])
    grads = tensors(50)
    grads[4].view(-1)[0] = float("inf")
    optimizer.stage(params, Direction(r0=grads), backend=backend)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0, device=DEVICE), 0  # an int: no `.grad` was seen
    optimizer.step()
    assert_equal(params, start)


def test_a_staged_step_with_a_fused_group_keeps_its_counter_where_torch_wants_it():
    param = torch.nn.Parameter(torch.ones(16, device=DEVICE))
    optimizer = optim.AdamW([param], fused=True)
    param.grad = torch.ones(16, device=DEVICE)
    optimizer.stage()
    optimizer.step()
    assert optimizer.state[param]["step"].device == param.device and optimizer.state[param]["step"] == 1
    optimizer.step()
    assert optimizer.state[param]["step"] == 2
