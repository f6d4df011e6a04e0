"""Bad lists: one ValueError that names the list, the index and what is wrong, before anything is written."""

import pytest
import torch
from kernel_parts import DEVICE, assert_equal, backends, copies

from hf_sharp_unlearn import kernels as package
from hf_sharp_unlearn.kernels import SGD, AdamW, Direction, backend_for
from hf_sharp_unlearn.kernels.checks import is_dense


def ones(*shapes, dtype=torch.float32):
    return [torch.ones(shape, dtype=dtype, device=DEVICE) for shape in shapes]


GOOD = ((4, 6), (32,), (3, 2))


def spoilt(kind):
    """A list like ones(*GOOD) with one wrong tensor, and words that the error must contain."""
    values = ones(*GOOD)
    if kind == "length":
        return values[:2], ["tensors", "2", "3"]
    if kind == "dtype":
        values[1] = values[1].double()
        return values, ["[1]", "float64", "float32"]
    if kind == "shape":
        values[2] = torch.ones(2, 3, device=DEVICE)
        return values, ["[2]", "(2, 3)", "(3, 2)"]
    if kind == "strides":
        values[0] = torch.ones(6, 4, device=DEVICE).t()
        return values, ["[0]", "(1, 4)", "(6, 1)", "empty_like"]
    values[1] = torch.ones(32, device="meta")
    return values, ["[1]", "meta"]


KINDS = ["length", "dtype", "shape", "strides", "device"]


@backends
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", ["grads", "outs", "masks", "momenta", "halves", "backups"])
def test_a_wrong_tensor_is_named_in_every_operation(kernels, kind, role):
    bad, words = spoilt(kind)
    w = ones(*GOOD)
    masks = kernels.pack([x > 0 for x in w], w)
    if role == "masks":
        bad = [x if x.dtype == torch.float64 else x.to(masks[0].dtype) for x in bad]
        words = [word for word in words if word != "float32"]
    start, etas, rules = copies(w), [None] * 3, [SGD(0.1, 0.9)] * 3
    fine = ones(*GOOD)
    calls = {
        "grads": [
            lambda: kernels.norms(w, [fine, bad], etas),
            lambda: kernels.displace(w, bad, fine, etas, 1.0),
            lambda: kernels.perturb(w, bad, fine, etas, 1.0, []),
        ],
        "outs": [
            lambda: kernels.displace(w, fine, bad, etas, 1.0),
            lambda: kernels.compose(Direction(r0=w), bad),
            lambda: kernels.perturb(w, fine, bad, etas, 1.0, []),
        ],
        "masks": [
            lambda: kernels.norms(w, [fine], etas, bad, [True]),
            lambda: kernels.displace(w, fine, ones(*GOOD), etas, 1.0, bad, True),
            lambda: kernels.compose(Direction(r0=fine, f0=ones(*GOOD), masks=bad), ones(*GOOD)),
            lambda: kernels.sgd(w, Direction(r0=fine, f0=ones(*GOOD), masks=bad), ones(*GOOD), rules),
        ],
        "momenta": [
            lambda: kernels.sgd(w, Direction(r0=fine), bad, rules),
            lambda: kernels.adamw(w, Direction(r0=fine), bad, ones(*GOOD), [AdamW(0.1)] * 3),
        ],
        "halves": [
            lambda: kernels.compose(Direction(r1=fine, f0=bad, f1=fine, masks=masks), ones(*GOOD)),
            lambda: kernels.sgd(w, Direction(r0=bad), ones(*GOOD), rules),
        ],
        "backups": [lambda: kernels.sgd(w, Direction(r0=fine), ones(*GOOD), rules, backups=bad)],
    }[role]
    for call in calls:
        with pytest.raises(ValueError) as raised:
            call()
        for word in words:
            assert word in str(raised.value), f"{word!r} is missing in: {raised.value}"
        assert_equal(w, start)


@backends
def test_a_mask_of_another_dtype_or_shape_is_not_packed(kernels):
    w = ones((4,), (3,))
    with pytest.raises(ValueError, match=r"masks\[1\] is torch.uint8"):
        kernels.pack([w[0] > 0, torch.ones(3, dtype=torch.uint8, device=DEVICE)], w)
    with pytest.raises(ValueError, match=r"masks\[0\] has shape \(3,\)"):
        kernels.pack([w[1] > 0, w[1] > 0], w)
    with pytest.raises(ValueError, match="masks has 1 tensors"):
        kernels.pack([w[0] > 0], w)


@backends
def test_memory_that_two_outputs_share_is_refused(kernels):
    """A tied weight that is passed twice would be updated twice."""
    block = torch.zeros(48, device=DEVICE)
    w = [block[:32], block[16:48]]
    g = ones((32,), (32,))
    for call in (
        lambda: kernels.sgd(w, Direction(r0=g), None, [SGD(0.1)] * 2),
        lambda: kernels.displace(g, g, w, [None] * 2, 0.1),
        lambda: kernels.displace(w, g, [w[0], g[0]], [None] * 2, 0.1),
        lambda: kernels.compose(Direction(r0=g), w),
    ):
        with pytest.raises(ValueError, match="share memory.*tied weight once"):
            call()


@backends
def test_numbers_and_directions_that_do_not_fit(kernels):
    w, g = ones(*GOOD), ones(*GOOD)
    masks = kernels.pack([x > 0 for x in w], w)
    for call, words in (
        (lambda: kernels.norms(w, [g], [None]), "etas has 1 entries"),
        (lambda: kernels.norms(w, [g, g, g], [None] * 3), "one or two"),
        (lambda: kernels.displace(w, g, ones(*GOOD), [None], 1.0), "etas has 1 entries"),
        (lambda: kernels.compose(Direction()), "no gradient"),
        (lambda: kernels.compose(Direction(r0=g), accumulate=True), "accumulate=True needs outs"),
        (lambda: kernels.compose(Direction(r1=g, lam_retain=0.5)), "clean gradient"),
        (lambda: kernels.compose(Direction(f1=g, masks=masks)), "clean gradient"),
        (lambda: kernels.compose(Direction(r0=g, f0=g)), "masks=None"),
        (lambda: kernels.sgd(w, Direction(f0=g), None, [SGD(0.1)] * 3), "masks=None"),
        (lambda: kernels.sgd(w, Direction(r1=g, lam_retain=0.0), None, [SGD(0.1)] * 3), "clean gradient"),
        (lambda: kernels.sgd(w, Direction(f1=g, masks=masks), None, [SGD(0.1)] * 3), "clean gradient"),
        (lambda: kernels.sgd(w, Direction(), None, [SGD(0.1)] * 3), "no gradient"),
        (lambda: kernels.sgd(w, Direction(r0=g), None, [SGD(0.1)]), "rules has 1 entries"),
        (lambda: kernels.sgd(w, Direction(r0=g), None, [SGD(0.1, 0.9)] * 3), "momenta=None"),
        (lambda: kernels.sgd(w, Direction(r0=g), ones(*GOOD), [SGD(0.1, 0.9), SGD(0.1), SGD(0.1)]), r"rules\[1\]"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
        assert_equal(w, ones(*GOOD))


def test_triton_refuses_gaps_in_memory_and_other_dtypes():
    triton = package.load("triton")
    gaps = [torch.ones(4, 8, device=DEVICE)[:, ::2]]
    assert not is_dense(gaps[0]) and is_dense(torch.ones(4, 8).t()) and is_dense(torch.ones(2, 3, 4).permute(2, 0, 1))
    with pytest.raises(ValueError, match=r"weights\[0\] has gaps.*'reference'"):
        triton.norms(gaps, [gaps], [None])
    with pytest.raises(ValueError, match=r"weights\[0\] is torch.float64.*'reference'"):
        triton.norms(ones((3,), dtype=torch.float64), [ones((3,), dtype=torch.float64)], [None])
    reference = backend_for(DEVICE, gaps, "reference")
    assert reference.norms(gaps, [gaps], [None]).item() == 16


def test_backend_for_takes_refuses_and_falls_back(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert backend_for(cpu) is package.tiled and backend_for(cpu, name="reference") is package.reference
    assert backend_for(cuda) is package.load("triton")
    assert backend_for(torch.device("mps")) is package.reference
    for name in ("gpu", ""):
        with pytest.raises(ValueError, match="must be 'auto' or one of"):
            backend_for(cpu, name=name)
    with pytest.raises(ValueError, match="kernel_backend='tiled': it is made for the CPU"):
        backend_for(cuda, name="tiled")
    with pytest.raises(ValueError, match="kernel_backend='triton'.*float64"):
        backend_for(cuda, ones((2,), dtype=torch.float64), "triton")
    monkeypatch.setattr(package.load("triton"), "INTERPRETED", False)
    with pytest.raises(ValueError, match="kernel_backend='triton': Triton needs a GPU"):
        backend_for(cpu, name="triton")

    monkeypatch.setattr(package, "_said", set())
    with pytest.warns(UserWarning, match="'triton' kernels cannot run, 'reference' is used.*float64"):
        assert backend_for(cuda, ones((2,), dtype=torch.float64)) is package.reference
    assert backend_for(cuda, ones((2,), dtype=torch.float64)) is package.reference  # said once: no second warning

    def missing(name):
        raise ImportError("No module named 'triton'")

    monkeypatch.setattr(package, "load", missing)
    with pytest.warns(UserWarning, match="Triton cannot be imported"):
        assert backend_for(cuda) is package.reference
    with pytest.raises(ValueError, match="Triton cannot be imported"):
        backend_for(cuda, name="triton")


def test_a_trial_launch_that_failed_once_is_tried_again_and_a_success_is_remembered(monkeypatch):
    """Want of memory passes; a process must not compute on 'reference' for good because of it."""
    calls = []

    class Backend:
        @staticmethod
        def norms(weights, gradients, etas):
            calls.append(1)
            if len(calls) == 1:
                raise RuntimeError("out of memory")
            return torch.tensor([15.0 if len(calls) == 2 else 16.0])

    class Module:
        is_available = staticmethod(lambda: True)
        current_device = staticmethod(lambda: 0)

    ones = torch.ones
    monkeypatch.setattr(torch, "get_device_module", lambda device: Module)
    monkeypatch.setattr(torch, "ones", lambda size, device: ones(size))
    monkeypatch.setattr(package, "_tried", set())
    assert "out of memory" in package._trial(Backend, torch.device("cuda"))
    assert "wrong sum" in package._trial(Backend, torch.device("cuda"))
    assert [package._trial(Backend, torch.device(name)) for name in ("cuda", "cuda", "cuda:0")] == [None] * 3
    assert len(calls) == 3
