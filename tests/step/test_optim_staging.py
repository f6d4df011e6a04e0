"""Staging a step: for one step only, refused when it cannot work, and safe in copies, scalers and bfloat16."""

import copy
import pickle

import pytest
import torch
from kernel_parts import DEVICE, HERE, assert_equal, bool_masks, copies, tensors
from optim_parts import each, groups, parameters, run, staged

from hf_sharp_unlearn.kernels import Direction, reference
from hf_sharp_unlearn.step import optim


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


@each
def test_a_copy_and_a_pickle_of_an_optimizer_step_on(cls, options):
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


def moved_away(params, optimizer):
    for param in params[::2]:
        param.data = param.data.clone()


def loaded(params, optimizer):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def regrouped(params, optimizer):
    *others, last = optimizer.param_groups
    moved = last["params"].pop()
    optimizer.param_groups[0]["params"].append(moved)


def border_moved(params, optimizer):
    """The order of the weights stays."""
    first, second = (group["params"] for group in optimizer.param_groups)
    second.insert(0, first.pop())


def reset(params, optimizer):
    del optimizer.state[params[1]]


def moments_moved(params, optimizer):
    for state in optimizer.state.values():
        for value in state.values():
            if torch.is_tensor(value):
                value.data = value.data.clone()


def replaced(params, optimizer):
    for group in optimizer.param_groups:
        group["lr"] *= 0.5


def turned(params, optimizer):
    optimizer.param_groups[-1]["maximize"] = True


@each
@pytest.mark.parametrize(
    "change", [moved_away, loaded, regrouped, border_moved, reset, moments_moved, replaced, turned]
)
def test_what_is_kept_between_steps_follows_the_optimizer(cls, options, change):
    """The same steps with nothing kept: the optimizer forgets before each of them."""
    ends = []
    for forgets in (True, False):
        params = parameters()
        optimizer = cls(groups(params), **options)
        for step in range(3):
            for param, grad in zip(params, tensors(50 + step), strict=True):
                param.grad = grad
            if step:
                change(params, optimizer)
            if forgets:
                optimizer.unstage()
            optimizer.stage(backend=HERE[-1])
            optimizer.step()
        ends.append(params)
    assert_equal(*ends)
