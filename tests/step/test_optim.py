"""The one-sweep optimizers: equal to torch's, interchangeable with them, and exact where torch is."""

import copy

import pytest
import torch
from kernel_parts import DEVICE, assert_equal, backends, bool_masks, copies, tensors
from optim_parts import each, groups, parameters, run, staged
from parts import assert_same_updates

from hf_sharp_unlearn.kernels import SGD, Direction


@each
@staged
def test_a_staged_step_equals_torch(cls, options, backend):
    """Param groups, a schedule, first steps, None gradients, a clipping coefficient."""
    ours, mine = run(cls, options, torch.float32, 4, backend, scale=0.5)
    theirs, other = run(cls._torch, options, torch.float32, 4, scale=0.5)
    assert_same_updates(ours, theirs, parameters())
    assert mine.state_dict().keys() == other.state_dict().keys()
    found, expected = (
        {(key, name): value for key, state in optimizer.state_dict()["state"].items() for name, value in state.items()}
        for optimizer in (mine, other)
    )
    moments = {key: moment for key, moment in expected.items() if moment is not None}
    assert found.keys() == moments.keys()
    if moments:
        assert_same_updates(found, moments)


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
    assert_same_updates(params, expected, parameters())


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
