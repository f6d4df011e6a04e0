"""Every backend against written-out formulas and against `reference`; edge cases, faults, guard bands."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_parts import DEVICE, ETAS, SHAPES, Guarded, assert_equal, backends, bool_masks, copies, others, tensors

from hf_sharp_unlearn.kernels import SGD, AdamW, Direction, reference, tiled, tiles

few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NONE = [None] * len(SHAPES)


def summed(kernels):
    """Tolerance of a sum of squares: `tiled` adds the squares of a tile in float32."""
    return {"rtol": 2e-5 if kernels is tiled else 1e-6, "atol": 0}


def part_of(kernels, w, inside):
    return {} if inside is None else {"masks": kernels.pack(bool_masks(), w), "inside": inside}


def norm(kernels, w, g, etas, masks=None, inside=None):
    return kernels.norms(w, [g], etas, masks, [inside])[0]


@backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inside", [None, True, False])
def test_norms_displace_and_perturb_are_their_formulas(kernels, dtype, inside):
    w, g, h = (tensors(seed, dtype) for seed in (1, 2, 3))
    part = part_of(kernels, w, inside)
    taken = [torch.ones_like(m) if inside is None else m == inside for m in bool_masks()]
    scales = [1.0 if eta is None else x.double().abs() + eta for x, eta in zip(w, ETAS, strict=True)]

    both = [None, None] if inside is None else [inside, not inside]
    found = kernels.norms(w, [g, h], ETAS, part.get("masks"), both)
    assert found.dtype == torch.float64 and found.shape == (2,)
    for k, values in enumerate((g, h)):
        use = taken if k == 0 or inside is None else [~t for t in taken]
        squares = sum(((t * x.double() * m) ** 2).sum() for t, x, m in zip(scales, values, use, strict=True))
        torch.testing.assert_close(found[k], squares, **summed(kernels))

    start, outs, backups, saved = copies(w), copies(w), [torch.empty_like(x) for x in w], []
    kernels.displace(w, g, outs, ETAS, 0.3, **part)
    assert_equal(w, start)
    kernels.perturb(w, g, backups, ETAS, 0.3, saved, **part)
    assert_equal(w, outs)
    assert_equal(backups, start)
    tolerance = {torch.bfloat16: 2**-8, torch.float32: 1e-6}[dtype]
    for i, x in enumerate(start):
        expected = x.double() + 0.3 * scales[i] ** 2 * g[i].double() * taken[i]
        torch.testing.assert_close(w[i].double(), expected, rtol=tolerance, atol=tolerance)
        assert torch.equal(w[i][~taken[i]], x[~taken[i]]), "the other part does not move at all"
    assert sorted(saved) == list(range(len(w)))
    kernels.restore(w, backups, saved)
    assert saved == []
    assert_equal(w, start)


def test_reference_and_tiled_compute_in_float64_too():
    for kernels in (reference, tiled) if DEVICE.type == "cpu" else (reference,):
        w, g, r1, f0, f1 = (tensors(seed, torch.float64) for seed in range(5))
        masks = kernels.pack(bool_masks(), w)
        d, squares = kernels.compose(Direction(None, copies(r1), f0, f1, masks))
        for i, m in enumerate(bool_masks()):
            torch.testing.assert_close(d[i], torch.where(m, 2 * f0[i] - f1[i], r1[i]), rtol=1e-15, atol=1e-15)
        torch.testing.assert_close(squares, sum((x**2).sum() for x in d), rtol=1e-12, atol=0)
        outs = copies(w)
        kernels.displace(w, g, outs, [0.1] * len(w), 0.3)
        for x, y, z in zip(w, g, outs, strict=True):
            torch.testing.assert_close(z, x + 0.3 * (x.abs() + 0.1) ** 2 * y, rtol=1e-14, atol=1e-14)


@backends
def test_lists_may_be_empty_and_a_zero_gradient_has_norm_zero(kernels):
    assert kernels.norms([], [[]], []).tolist() == [0.0]
    kernels.perturb([], [], [], [], 1.0, [])
    kernels.displace([], [], [], [], 1.0)
    kernels.restore([], [], [])
    assert kernels.compose(Direction([], [], [], [], []), [])[0] == []
    kernels.sgd([], Direction([]), [], [])
    kernels.adamw([], Direction([]), [], [], [])
    w = tensors(1)
    assert norm(kernels, w, [torch.zeros_like(x) for x in w], NONE) == 0


@backends
@pytest.mark.parametrize("lam", [(0.0, 0.0), (1.0, 1.0), (0.3, 2.0)])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compose_is_its_formula(kernels, lam, overlap, dtype):
    r0, r1, f0, f1, before = (tensors(seed, dtype) for seed in (1, 2, 3, 4, 5))
    masks = kernels.pack(bool_masks(), r0)

    def direction():
        return Direction(*map(copies, (r0, r1, f0, f1)), masks, *lam, overlap)

    d, squares = kernels.compose(direction())
    outs = copies(before)
    added, _ = kernels.compose(direction(), outs, accumulate=True)
    assert all(a is b for a, b in zip(added, outs, strict=True))
    tolerance = {"rtol": 2**-7, "atol": 2**-7} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    for i, m in enumerate(bool_masks()):
        g = [x[i].double() for x in (r0, r1, f0, f1)]
        r, f = g[0] + lam[0] * (g[1] - g[0]), g[2] - lam[1] * (g[3] - g[2])
        expected = r + m * f if overlap else torch.where(m, f, r)
        torch.testing.assert_close(d[i].double(), expected, **tolerance)
        torch.testing.assert_close(added[i].double(), before[i].double() + expected, **tolerance)
    torch.testing.assert_close(squares, sum((x.double() ** 2).sum() for x in d), **summed(kernels))


@backends
@pytest.mark.parametrize("value", [True, False])
def test_masks_of_all_and_nothing_are_the_two_halves(kernels, value):
    r1, f0, f1 = (tensors(seed) for seed in (1, 2, 3))
    masks = kernels.pack([torch.full(x.shape, value, device=DEVICE) for x in r1], r1)
    d, _ = kernels.compose(Direction(None, r1, f0, f1, masks), [torch.empty_like(x) for x in r1])
    assert_equal(d, [a * 2 - b for a, b in zip(f0, f1, strict=True)] if value else r1)
    moved = copies(r1)
    kernels.displace(r1, f0, moved, ETAS, 0.1, masks, True)
    whole = copies(r1)
    kernels.displace(r1, f0, whole, ETAS, 0.1)
    assert_equal(moved, whole if value else r1)


@backends
@pytest.mark.parametrize("overlap", [False, True])
def test_a_nan_on_the_other_side_of_the_mask_does_not_leak(kernels, overlap):
    """In any operation, on the vector path and on the scalar one."""
    for size in (2, 32):
        mask = torch.arange(size, device=DEVICE) % 2 == 0
        w, nan = [torch.ones(size, device=DEVICE)], float("nan")
        m = kernels.pack([mask], w)
        g = [torch.where(mask, nan, 2.0)]
        assert norm(kernels, w, g, [0.5], m, False) == (1.5 * 2.0) ** 2 * (size // 2)
        out = copies(w)
        kernels.displace(w, g, out, [None], 1.0, m, False)
        assert torch.equal(out[0], torch.where(mask, 1.0, 3.0))
        f = [torch.where(mask, 1.0, nan)]
        retain = [torch.zeros_like(w[0])] if overlap else [torch.where(mask, nan, 0.0)]
        direction = Direction(retain, retain, f, f, m, overlap=overlap)
        d, squares = kernels.compose(direction, [torch.empty_like(w[0])])
        assert torch.equal(d[0], torch.where(mask, 1.0, 0.0)) and squares == size // 2
        v, x = [torch.zeros_like(w[0])], copies(w)
        kernels.sgd(x, direction, v, [SGD(1.0, 0.9)])
        assert torch.equal(x[0], torch.where(mask, 0.0, 1.0)) and torch.equal(v[0], d[0])


@backends
def test_a_half_that_is_absent_counts_as_zero(kernels):
    w = tensors(1)
    m, bools = kernels.pack(bool_masks(), w), bool_masks()
    zero = [torch.zeros_like(x) for x in w]
    g = tensors(2)
    composed = kernels.compose(Direction(f0=copies(g), masks=m))[0]
    assert_equal(composed, [torch.where(b, x, z) for b, x, z in zip(bools, g, zero, strict=True)])
    composed = kernels.compose(Direction(r0=copies(g), masks=m))[0]
    assert_equal(composed, [torch.where(b, z, x) for b, x, z in zip(bools, g, zero, strict=True)])
    assert_equal(kernels.compose(Direction(r0=copies(g), masks=m, overlap=True))[0], g)
    assert_equal(kernels.compose(Direction(r0=copies(g)))[0], g)


def everything(kernels, dtype, inside, lam, overlap):
    """Results of each operation on the same inputs: bitwise comparable lists, and AdamW's."""
    w, g, r0, r1, f0, f1 = (tensors(seed, dtype) for seed in range(1, 7))
    ready = kernels.pack(bool_masks(), w)
    part = {} if inside is None else {"masks": ready, "inside": inside}
    moved, out, backups, saved = copies(w), copies(w), [torch.empty_like(x) for x in w], []
    length = kernels.norms(w, [g, r0], ETAS, part.get("masks"), [inside, inside])
    kernels.displace(w, g, out, ETAS, 0.01, **part)
    kernels.perturb(moved, g, backups, ETAS, 0.01, saved, **part)
    direction = Direction(r0, r1, f0, f1, ready, lam, lam, overlap)
    composed, squares = kernels.compose(direction, copies(w))
    x, v = copies(w), [y.float() for y in copies(tensors(8, dtype))]
    rules = [SGD(0.1, 0.9, 0.1 * (i % 2), 0.01 * (i % 3), i % 2 == 0) for i in range(len(w))]
    total = kernels.sgd(x, direction, v, rules, 0.7, backups=backups, norm=True)
    y, m, s = copies(w), [z.float() for z in copies(g)], [z.float() ** 2 for z in copies(r0)]
    kernels.adamw(y, direction, m, s, [AdamW(0.01, step=i + 1) for i in range(len(w))], 0.7)
    return torch.cat([length, squares.view(1), total.view(1)]), out + moved + composed + x + v, y + m + s


@others
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inside", "lam", "overlap"), [(None, 1.0, False), (True, 0.3, True), (False, 0.0, False)])
def test_backends_equal_the_reference_bit_by_bit(kernels, dtype, inside, lam, overlap):
    """Norms up to the order of summation, AdamW up to the rounding of torch's square root."""
    found, expected = (everything(k, dtype, inside, lam, overlap) for k in (kernels, reference))
    torch.testing.assert_close(found[0], expected[0], **summed(kernels))
    assert_equal(found[1], expected[1])
    for a, b in zip(found[2], expected[2], strict=True):
        torch.testing.assert_close(a, b, rtol=2**-7 if a.dtype == torch.bfloat16 else 1e-6, atol=1e-7)


@others
@few
@given(
    sizes=st.lists(st.integers(0, 70), min_size=1, max_size=5),
    offset=st.integers(0, 5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    inside=st.sampled_from([None, True, False]),
    lam=st.sampled_from([0.0, 0.4, 1.0]),
    overlap=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_sizes_and_alignments_and_nothing_else_is_written(
    kernels, sizes, offset, dtype, inside, lam, overlap, seed
):
    shapes = [(size,) for size in sizes]
    roles = [Guarded(tensors(seed + k, dtype, shapes), offset if k % 2 else 0) for k in range(7)]
    masks = bool_masks(seed, shapes)
    results = {}
    for k in (kernels, reference):
        ready = k.pack(masks, roles[0].tensors)
        part = {} if inside is None else {"masks": ready, "inside": inside}
        w, out, state = (Guarded(roles[n].tensors, offset) for n in (0, 1, 2))
        state = Guarded([x.float() for x in state.tensors], offset)
        etas = [[None, 0.0, 0.3][i % 3] for i in range(len(sizes))]
        grads = roles[3].tensors
        k.displace(w.tensors, grads, out.tensors, etas, 0.05, **part)
        moved = [x.clone() for x in out.tensors]
        direction = Direction(*(role.tensors for role in roles[3:7]), ready, lam, lam, overlap)
        d, squares = k.compose(direction, out.tensors, accumulate=True)
        k.sgd(w.tensors, direction, state.tensors, [SGD(0.1, 0.9, 0.5, 0.01, True)] * len(sizes))
        results[k] = moved + [x.clone() for x in d] + w.tensors + state.tensors
        for guarded in (w, out, state, *roles):
            guarded.check()
    assert_equal(results[kernels], results[reference])


@pytest.mark.skipif(DEVICE.type != "cpu", reason="tiled is made for the CPU")
@pytest.mark.parametrize("small", [0, 10, 1 << 20])
def test_small_tensors_are_worked_on_together_with_the_same_result(monkeypatch, small):
    """All one by one, some together, all together; each with its own eta or rule."""
    expected = everything(reference, torch.float32, True, 0.3, False)
    monkeypatch.setattr(tiles, "SMALL", small)
    monkeypatch.setattr(tiles, "TILE", 1000)
    found = everything(tiled, torch.float32, True, 0.3, False)
    assert_equal(found[1], expected[1])
    torch.testing.assert_close(found[0], expected[0], **summed(tiled))


@backends
def test_only_what_was_backed_up_in_this_step_is_put_back(kernels):
    w = [torch.ones(2, device=DEVICE), torch.ones(2, device=DEVICE)]
    stale, saved = [torch.full((2,), 7.0, device=DEVICE), torch.full((2,), 7.0, device=DEVICE)], [1]
    kernels.restore(w, stale, saved)
    assert w[0].tolist() == [1.0, 1.0] and w[1].tolist() == [7.0, 7.0] and saved == []


@backends
def test_restore_is_exact_after_many_cycles(kernels):
    generator = torch.Generator().manual_seed(0)
    sizes = [(7, -6), (64, 0), (0, 0)]
    w = [(torch.randn(size, generator=generator) * 10.0**power).to(DEVICE) for size, power in sizes]
    start, backups = copies(w), [torch.empty_like(x) for x in w]
    interpreted = getattr(kernels, "INTERPRETED", False)  # every cycle is the same code, and slow there
    for _ in range(100 if interpreted else 1000):
        g = [torch.randn(x.shape, generator=generator).to(DEVICE) for x in w]
        kernels.perturb(w, g, backups, [None, 0.1, 0.0], 0.3, saved := [])
        assert sorted(saved) == [0, 1, 2] and not torch.equal(w[0], start[0])
        kernels.restore(w, backups, saved)
        assert_equal(w, start)


@backends
@pytest.mark.parametrize("size", [1e-30, 1e-18, 1e25, 1e37])
def test_the_norm_of_tiny_and_of_huge_gradients(kernels, size):
    """fp32 squares of these under- or overflow."""
    g = [torch.full((1000,), size, device=DEVICE)]
    found = norm(kernels, [torch.ones(1000, device=DEVICE)], g, [None]).sqrt().item()
    assert found == pytest.approx(size * 1000**0.5, rel=1e-5)
    _, squares = kernels.compose(Direction(r0=g))
    assert squares.sqrt().item() == pytest.approx(size * 1000**0.5, rel=1e-5)


@pytest.mark.parametrize("kernels", [reference, tiled])
def test_weights_with_gaps_are_worked_on_by_shape(kernels):
    """A slice of a larger tensor: gradients of it are dense, so no two lists share an order of memory."""
    block = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    w, dense = [block[:, :6]], [block[:, :6].clone()]
    g = [torch.randn(8, 6, generator=torch.Generator().manual_seed(1))]
    results = []
    for weights in (w, dense):
        masks = kernels.pack([g[0] > 0], weights)
        out, v = [torch.empty(8, 6)], [torch.zeros(8, 6)]
        length = kernels.norms(weights, [g], [0.1], masks, [True])
        kernels.displace(weights, g, out, [0.1], 0.3, masks, True)
        d, _ = kernels.compose(Direction(None, copies(g), out, g, masks), [torch.empty(8, 6)])
        kernels.perturb(weights, g, [torch.empty(8, 6)], [None], 0.3, [])
        kernels.sgd(weights, Direction(r0=d), v, [SGD(0.1, 0.9, 0.0, 0.01)])
        results.append([length, out[0], d[0], v[0], weights[0]])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_scratch_memory_serves_every_mode():
    """Made under inference mode, or another default device, it must still serve training."""
    w, g, out = [torch.ones(100_000)], [torch.ones(100_000)], [torch.empty(100_000)]
    tiles.SCRATCH._buffers.clear()
    with torch.inference_mode():
        tiled.displace(w, g, [torch.empty(100_000)], [0.1], 0.5)
    torch.set_default_device("meta")
    try:
        tiled.norms(w, [g], [0.1])
        tiled.displace(w, g, out, [0.1], 0.5)
    finally:
        torch.set_default_device(None)
    tiled.sgd(w, Direction(r0=g), [torch.zeros(100_000)], [SGD(0.1, 0.9, 0.0, 0.1)])
    torch.testing.assert_close(out[0], torch.full((100_000,), 1 + 0.5 * 1.1**2))
