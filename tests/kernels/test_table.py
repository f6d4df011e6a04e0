"""Chunk lists and pointer tables: what is walked 16 bytes at a time, and that kept tables stay true."""

import pytest
import torch
from kernel_parts import DEVICE

from hf_sharp_unlearn.kernels import load, metered
from hf_sharp_unlearn.kernels.table import is_vector, table_of


def block(size, offset=0, dtype=torch.float32):
    """A slice that begins `offset` elements past a 64-byte boundary."""
    buffer = torch.zeros(size + offset + 64, dtype=dtype, device=DEVICE)
    shift = (-buffer.data_ptr() % 64) // buffer.element_size()
    return buffer[shift + offset : shift + offset + size]


def table(*rows, chunk=64):
    return table_of(list(rows), chunk, lambda: None)


def kinds(found):
    return {
        int(i): chunks.vector for chunks in found.chunks for i in chunks.tensor_of.tolist()
    }  # fmt: skip


def test_the_vector_list_takes_aligned_tensors_of_16_elements_only():
    sizes_and_offsets = [(64, 0), (64, 4), (64, 1), (63, 0), (16, 0), (8, 0), (160, 8), (0, 0)]
    tensors = [block(size, offset) for size, offset in sizes_and_offsets]
    assert kinds(table(tensors)) == {0: True, 1: True, 2: False, 3: False, 4: True, 5: False, 6: True}
    for size, offset in sizes_and_offsets:
        expected = size % 16 == 0 and offset % 4 == 0
        assert is_vector([block(size, offset).data_ptr()], size) == expected


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


def test_tables_are_found_by_address_size_and_dtype_and_checked_when_made():
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
    other = find([[tensors[0], block(32)]])
    assert other is not first and other.chunks is first.chunks, "chunk lists depend on sizes and alignment alone"
    assert len(checked) == 6


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
