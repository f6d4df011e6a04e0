"""Chunk lists and pointer tables: what is walked 16 bytes at a time, and that kept tables stay true."""

import pytest
import torch
from kernel_parts import DEVICE

from hf_sharp_unlearn.kernels import SGD, Direction, load, metered
from hf_sharp_unlearn.kernels.staging import Rewritten
from hf_sharp_unlearn.kernels.table import Steady, is_vector, numbers, table_of


def block(size, offset=0, dtype=torch.float32):
    """A slice that begins `offset` elements past a 64-byte boundary."""
    buffer = torch.zeros(size + offset + 64, dtype=dtype, device=DEVICE)
    shift = (-buffer.data_ptr() % 64) // buffer.element_size()
    return buffer[shift + offset : shift + offset + size]


def table(*rows, chunk=64, **options):
    return table_of(list(rows), chunk, lambda: None, **options)


def kinds(found):
    return {
        int(i): chunks.vector for chunks in found.chunks for i in chunks.tensor_of.tolist()
    }  # fmt: skip


def test_the_vector_list_takes_aligned_tensors_of_8_elements_only():
    sizes_and_offsets = [(64, 0), (64, 4), (64, 1), (63, 0), (16, 0), (8, 0), (160, 8), (0, 0), (24, 0), (12, 0)]
    tensors = [block(size, offset) for size, offset in sizes_and_offsets]
    expected = [size % 8 == 0 and offset % 4 == 0 for size, offset in sizes_and_offsets]
    assert kinds(table(tensors)) == {i: vector for i, vector in enumerate(expected) if sizes_and_offsets[i][0]}
    pointers = torch.tensor([[tensor.data_ptr() for tensor in tensors]])
    assert is_vector(pointers, torch.tensor([size for size, _ in sizes_and_offsets])).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_one_misaligned_role_makes_the_tensor_scalar(dtype):
    """A view into a DDP bucket, say."""
    w, g = [block(64, 0, dtype)], [block(64, 1, dtype)]
    assert kinds(table(w, w)) == {0: True}
    assert kinds(table(w, g)) == {0: False}
    assert kinds(table(w, None, w)) == {0: True}
    mask = [block(64, 8, torch.uint8)]  # 8 bytes past the boundary
    assert kinds(table(w, mask)) == {0: False}


def test_chunks_cover_every_element_once():
    tensors = [block(size) for size in (0, 1, 64, 65, 200, 16)]
    found = table(tensors)
    covered = {i: [] for i in range(len(tensors))}
    places = []
    for chunks in found.chunks:
        for k, (i, low) in enumerate(zip(chunks.tensor_of.tolist(), chunks.offset_of.tolist(), strict=True)):
            covered[i] += range(low, min(low + 64, tensors[i].numel()))
            places.append(chunks.first + k)
    assert all(covered[i] == list(range(tensor.numel())) for i, tensor in enumerate(tensors))
    assert sorted(places) == list(range(found.total)), "every chunk has a partial sum of its own"
    assert found.numel.tolist() == [tensor.numel() for tensor in tensors]
    assert found.pointers.tolist() == [[tensor.data_ptr() for tensor in tensors]]


def test_tables_are_kept_by_shape_dtype_and_order_and_checked_when_made():
    checked = []
    tensors = [block(64), block(32)]

    def find(rows):
        return table_of(rows, 64, lambda: checked.append(1))

    first = find([tensors])
    assert find([list(tensors)]) is first and len(checked) == 1
    assert find([[tensors[0], tensors[1][:16]]]) is not first, "another size at the same address"
    assert find([[tensors[0], tensors[1].view(torch.int32)]]) is not first, "another dtype at the same address"
    square = [tensors[0].view(8, 8), tensors[1].view(4, 8)]
    assert find([[square[0].t(), square[1]]]) is not find([square]), "another order of memory at the same address"
    assert len(checked) == 5
    assert find([[tensors[0], block(32)]]) is first and len(checked) == 5, "other tensors of the same kind"
    wide = find([[block(64), block(32)], [block(64), block(32)]])
    assert wide is not first and wide.chunks is first.chunks, "chunk lists depend on sizes and alignment alone"


def test_tensors_that_have_moved_are_found_at_their_new_address_in_the_same_memory():
    """As gradients do in every step: no memory is made, and nothing is copied while nothing moves."""
    weights = Steady([block(64), block(33)])
    with metered() as meter:
        memory = table(weights, [block(64), block(33)]).pointers
        assert (meter.rebuilds, meter.rewrites) == (1, 0)
        for _ in range(5):
            gradients = [block(64), block(33)]
            found = table(weights, gradients)
            assert found.pointers is memory
            assert memory.tolist() == [[t.data_ptr() for t in row] for row in (weights, gradients)]
        before = meter.rewrites
        assert table(weights, gradients).pointers is memory and meter.rewrites == before
    assert meter.rebuilds == 1 and 1 <= before <= 5


def test_a_view_that_is_less_aligned_moves_to_the_other_chunk_list_and_back():
    plain, shifted = [block(64), block(32)], [block(64), block(32, 1)]
    for tensors, expected in ((plain, {0: True, 1: True}), (shifted, {0: True, 1: False}), (plain, {0: True, 1: True})):
        assert kinds(table(tensors)) == expected


def test_outputs_that_have_moved_into_each_other_are_refused():
    def check():
        raise ValueError("overlap")

    memory = block(256)
    apart = [[memory[:64], memory[64:96]], None, [memory[96:160], memory[160:192]]]
    table(*apart, written=(0, 1, 2))
    for wrong in (
        [apart[0], None, [memory[32:96], memory[160:192]]],
        [apart[0], None, apart[0]],
        [[memory[:64], memory[:32]], None, apart[2]],
    ):
        with pytest.raises(ValueError, match="overlap"):
            table_of(wrong, 64, check, written=(0, 1, 2))
    moved = [apart[2], None, apart[0]]
    assert table_of(moved, 64, check, written=(0, 1, 2)).pointers.tolist()[0] == [t.data_ptr() for t in apart[2]]
    table_of([apart[0], None, apart[0]], 64, lambda: None, written=(0,))  # only what is written


def test_a_kernel_refuses_outputs_that_have_moved_into_each_other():
    triton = load("triton")
    memory = block(192)
    w, g = [memory[:64].fill_(1.0)], [block(64)]
    triton.displace(w, g, [memory[64:128]], [None], 1.0)
    with pytest.raises(ValueError, match="share memory"):
        triton.displace(w, g, [memory[32:96]], [None], 1.0)
    assert torch.equal(w[0], torch.ones_like(w[0]))


def test_what_depends_on_numbers_is_checked_in_every_call():
    """A table is kept for lists of this kind; whether the numbers make sense with them is another question."""
    triton = load("triton")
    w, g, m = [block(64)], [block(64)], [block(64)]
    fine = Direction(r0=None, r1=g, lam_retain=1.0)
    triton.compose(fine, [block(64)])
    with pytest.raises(ValueError, match="clean gradient"):
        triton.compose(fine._replace(lam_retain=0.5), [block(64)])
    plain = Direction(r0=g)
    triton.sgd(w, plain, None, [SGD(0.1)])
    triton.sgd(w, plain, m, [SGD(0.1, 0.9)])
    with pytest.raises(ValueError, match="pass a buffer per weight"):
        triton.sgd(w, plain, None, [SGD(0.1, 0.9)])


def test_numbers_are_written_again_where_they_have_changed():
    with metered() as meter:
        first = numbers("test", [1.0, 2.0], DEVICE)
        assert numbers("test", [1.0, 2.0], DEVICE) is first and (meter.rebuilds, meter.rewrites) == (1, 0)
        assert numbers("test", [1.0, 3.0], DEVICE) is first and (meter.rebuilds, meter.rewrites) == (1, 1)
        assert first.flatten().tolist() == [1.0, 3.0]
        pairs = numbers("test", [(1.0, 2.0)] * 2, DEVICE)
        other = numbers("others", [1.0, 2.0], DEVICE)
        assert pairs is not first and other is not first and meter.rebuilds == 3
        assert (pairs.tolist(), other.flatten().tolist()) == ([[1.0, 2.0]] * 2, [1.0, 2.0])
        assert first.flatten().tolist() == [1.0, 3.0], "what other kinds write is theirs"


def test_a_gradient_in_another_order_at_the_same_address_is_refused():
    triton = load("triton")
    w, g, out = (block(16).view(4, 4) for _ in range(3))
    triton.displace([w], [g], [out], [None], 1.0)
    with pytest.raises(ValueError, match=r"grads\[0\] has strides"):
        triton.displace([w], [g.t()], [out], [None], 1.0)


def test_a_table_of_freed_tensors_does_not_serve_others():
    """New tensors at old addresses, of other sizes: results stay right."""
    triton = load("triton")
    for size in (64, 48, 64, 80, 33):
        g = [torch.full((size,), 2.0, device=DEVICE)]
        assert triton.norms(g, [g], [None]).item() == 4.0 * size
        del g


def test_the_meter_counts_launches_and_bytes():
    triton = load("triton")
    w, g, out = ([block(64), block(33)] for _ in range(3))
    mask = triton.pack([torch.zeros_like(x, dtype=torch.bool) for x in w], w)
    with metered() as meter:
        triton.displace(w, g, out, [None, None], 1.0)
        triton.displace(w, g, out, [None, None], 1.0, mask, True)
        triton.norms(w, [g, g], [None, None])
        triton.norms(w, [g], [0.0, None])
    n = 64 + 33
    assert meter.sweeps == [
        ("displace", 2, 12 * n),
        ("displace", 2, 13 * n),
        ("norms", 2, 8 * n),
        ("finish", 1, 0),
        ("norms", 2, 8 * n),
        ("finish", 1, 0),
    ]
    assert meter.launches == 10 and meter.bytes == 41 * n
    triton.displace(w, g, out, [None, None], 1.0)
    assert meter.launches == 10, "nothing is counted outside the block"


@pytest.mark.parametrize(("span", "levels"), [(1 << 12, 1), (16, 2), (4, 4)])
def test_partial_sums_are_added_up_in_as_many_levels_as_they_need(monkeypatch, span, levels):
    """65 chunks; a program adds up `span` of them. Eight billion parameters have half a million."""
    triton = load("triton")
    monkeypatch.setattr("hf_sharp_unlearn.kernels.launch.SPAN", span)
    g = [torch.full((65 * 16384,), 2.0, device=DEVICE)]
    with metered() as meter:
        assert triton.norms(g, [g, g], [None]).tolist() == [4.0 * g[0].numel()] * 2
    assert meter.sweeps[-1] == ("finish", levels, 0)


def test_an_interrupt_while_addresses_or_numbers_are_written_leaves_nothing_stale(monkeypatch):
    """The old ones asked for again afterwards are written again: what the device holds is not known."""
    first, second = [block(64)], [block(64)]
    place, write = table(first), Rewritten.write
    memory = numbers("interrupted", [1.0], DEVICE)

    def interrupted(self, value):
        write(self, value)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Rewritten, "write", interrupted)
        for call in (lambda: table(second), lambda: numbers("interrupted", [2.0], DEVICE)):
            with pytest.raises(KeyboardInterrupt):
                call()
    assert table(first).pointers.tolist() == [[first[0].data_ptr()]] and table(first).pointers is place.pointers
    assert numbers("interrupted", [1.0], DEVICE).tolist() == [[1.0]] and memory.tolist() == [[1.0]]
