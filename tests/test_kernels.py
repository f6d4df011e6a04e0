"""The reference kernels against written-out formulas, and their edge cases. Other backends join through BACKENDS."""

import pytest
import torch

from hf_sharp_unlearn.kernels import BACKENDS

SHAPES = [(), (1,), (17,), (3, 5), (2, 3, 4, 4), (0, 4)]
backends = pytest.mark.parametrize("kernels", BACKENDS.values(), ids=BACKENDS.keys())


def tensors(seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


def masks(seed=9):
    return [value > 0 for value in tensors(seed)]


ETAS = [None, 0.0, 0.1, None, 0.5, 0.1]


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("inside", [None, True, False])
def test_norm_and_perturb_are_their_formulas(kernels, dtype, inside):
    w, g = tensors(1, dtype), tensors(2, dtype)
    part = {} if inside is None else {"masks": kernels.pack(masks(), w), "inside": inside}
    taken = [torch.ones_like(m) if inside is None else m == inside for m in masks()]
    scales = [1.0 if eta is None else x.double().abs() + eta for x, eta in zip(w, ETAS, strict=True)]
    tolerance = {torch.bfloat16: 2e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]

    squares = sum(((t * x.double() * m) ** 2).sum() for t, x, m in zip(scales, g, taken, strict=True))
    torch.testing.assert_close(kernels.norm(w, g, ETAS, **part), squares, rtol=tolerance, atol=0)

    start, backups, saved = [x.clone() for x in w], [torch.empty_like(x) for x in w], []
    kernels.perturb(w, g, backups, ETAS, 0.3, saved, **part)
    for i, x in enumerate(start):
        expected = x.double() + 0.3 * scales[i] ** 2 * g[i].double() * taken[i]
        torch.testing.assert_close(w[i].double(), expected, rtol=tolerance, atol=tolerance)
        assert torch.equal(w[i][~taken[i]], x[~taken[i]]), "the other part does not move at all"
        assert torch.equal(backups[i], x)
    assert saved == list(range(len(w)))
    kernels.restore(w, backups, saved)
    assert saved == [] and all(torch.equal(a, b) for a, b in zip(w, start, strict=True))


@backends
def test_lists_may_be_empty_and_a_zero_gradient_has_norm_zero(kernels):
    assert kernels.norm([], [], []) == 0
    kernels.perturb([], [], [], [], 1.0, [])
    assert kernels.norm(tensors(1), [torch.zeros(shape) for shape in SHAPES], [None] * len(SHAPES)) == 0


@backends
@pytest.mark.parametrize("lam", [(0.0, 0.0), (1.0, 1.0), (0.3, 2.0)])
@pytest.mark.parametrize("overlap", [False, True])
def test_compose_is_its_formula(kernels, lam, overlap):
    r0, r1, f0, f1 = (tensors(seed) for seed in (1, 2, 3, 4))
    copies = [[x.clone() for x in values] for values in (r0, r1, f0, f1)]
    d = kernels.compose(*copies, kernels.pack(masks(), r0), *lam, overlap)
    for i, m in enumerate(masks()):
        r = r0[i] + lam[0] * (r1[i] - r0[i])
        f = f0[i] - lam[1] * (f1[i] - f0[i])
        torch.testing.assert_close(d[i], r + m * f if overlap else torch.where(m, f, r))


@backends
@pytest.mark.parametrize("overlap", [False, True])
def test_a_nan_on_the_other_side_of_the_mask_does_not_leak(kernels, overlap):
    m = kernels.pack([torch.tensor([True, False])], [torch.ones(2)])
    nan = float("nan")
    g = [torch.tensor([nan, 2.0])]
    assert kernels.norm([torch.ones(2)], g, [None], m, False) == 4
    w, saved = [torch.ones(2)], []
    kernels.perturb(w, g, [torch.empty(2)], [None], 1.0, saved, m, False)
    assert w[0].tolist() == [1.0, 3.0]
    f = [torch.tensor([1.0, nan])]
    d = kernels.compose([torch.zeros(2)], [torch.zeros(2)], f, [x.clone() for x in f], m, overlap=overlap)
    assert d[0].tolist() == [1.0, 0.0]


@backends
def test_a_half_that_is_absent_counts_as_zero(kernels):
    m = kernels.pack([torch.tensor([True, False])], [torch.ones(2)])

    def g():  # the tensors handed in may be overwritten
        return [torch.tensor([3.0, 4.0])]

    assert kernels.compose(None, None, g(), None, m)[0].tolist() == [3.0, 0.0]
    assert kernels.compose(g(), None, None, None, m)[0].tolist() == [0.0, 4.0]
    assert kernels.compose(g(), None, None, None, m, overlap=True)[0].tolist() == [3.0, 4.0]


@pytest.mark.parametrize("name", sorted(set(BACKENDS) - {"reference"}))
@pytest.mark.parametrize("inside", [None, True, False])
def test_backends_equal_the_reference_bit_by_bit(name, inside):
    """Sizes beyond one tile, a transposed and a channels_last tensor, and a NaN outside the mask."""
    shapes = [(3, 200_003), (16, 8, 3, 3), (300, 7), (1,)]
    generator = torch.Generator().manual_seed(0)

    def make():
        made = [torch.randn(shape, generator=generator) for shape in shapes]
        made[1] = made[1].to(memory_format=torch.channels_last)
        made[2] = made[2].t()
        return made

    w, g, r0, r1, f0, f1 = (make() for _ in range(6))
    selected = [value > 0.5 for value in make()]
    if inside is not None:
        g[0][selected[0] != inside] = float("nan")
    etas = [None, 0.1, 0.0, 0.5]
    results = {}
    for key in ("reference", name):
        kernels = BACKENDS[key]
        ready = kernels.pack(selected, w)
        part = {} if inside is None else {"masks": ready, "inside": inside}
        moved, backups, saved = [x.clone() for x in w], [torch.empty_like(x) for x in w], []
        length = kernels.norm(w, g, etas, **part)
        kernels.perturb(moved, g, backups, etas, 0.01, saved, **part)
        assert saved == [0, 1, 2, 3] and all(torch.equal(a, b) for a, b in zip(backups, w, strict=True))
        composed = []
        for overlap, lam in ((False, 1.0), (True, 1.0), (False, 0.3), (True, 0.0)):
            halves = [[x.clone() for x in values] for values in (r0, r1, f0, f1)]
            composed += kernels.compose(*halves, ready, lam, lam, overlap)
        results[key] = length, moved + composed
    torch.testing.assert_close(results[name][0], results["reference"][0], rtol=1e-6, atol=0)
    for a, b in zip(results[name][1], results["reference"][1], strict=True):
        assert torch.equal(a, b)


@backends
def test_only_what_was_backed_up_in_this_step_is_put_back(kernels):
    w, stale = [torch.ones(2), torch.ones(2)], [torch.full((2,), 7.0), torch.full((2,), 7.0)]
    saved = [1]
    kernels.restore(w, stale, saved)
    assert w[0].tolist() == [1.0, 1.0] and w[1].tolist() == [7.0, 7.0] and saved == []


@backends
@pytest.mark.parametrize("size", [1e-30, 1e-18, 1e25, 1e37])
def test_the_norm_of_tiny_and_of_huge_gradients(kernels, size):
    """fp32 squares of these under- or overflow."""
    g = [torch.full((1000,), size)]
    assert kernels.norm([torch.ones(1000)], g, [None]).sqrt().item() == pytest.approx(size * 1000**0.5, rel=1e-5)
