"""Where the data lies: chunk lists and pointer tables in device memory, so that one launch serves many tensors.

A sweep walks rows: lists of equally long tensors, one list per role (weights, gradients, masks, ...). Each tensor is
cut into chunks, and a program of the kernel's grid works on one chunk:

    pointers   int64 (roles, tensors)   where each tensor begins; 0 for a role that the kernel does not read
    numel      int64 (tensors,)
    tensor_of  int32 (chunks,)          which tensor a chunk belongs to
    offset_of  int64 (chunks,)          where in that tensor it begins, in elements

There are two chunk lists: "vector" for tensors whose pointers are all multiples of 16 bytes and whose length is a
multiple of 16 elements, so that every dtype from 1 to 4 bytes moves 16 bytes a load; "scalar" for the others. Empty
tensors have no chunks.

Tables are kept and found again by addresses, shapes, dtypes and orders of memory, never by `id()`: what these say about
memory stays true whatever tensor they belong to.
"""

from collections import OrderedDict
from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

ALIGNMENT = 16  # bytes of a pointer, elements of a length
KEPT = 128  # tables; a step of Sharp MinMax uses about six

_shape, _dtype = attrgetter("shape"), attrgetter("dtype")


class Chunks(NamedTuple):
    """One chunk list; `vector` says which kind, `first` where its partial sums begin."""

    tensor_of: Tensor
    offset_of: Tensor
    vector: bool
    first: int

    def __len__(self) -> int:
        return len(self.tensor_of)


class Table(NamedTuple):
    pointers: Tensor
    numel: Tensor
    chunks: list[Chunks]
    total: int  # chunks in all lists

    @property
    def tensors(self) -> int:
        return len(self.numel)


def is_vector(pointers: Sequence[int], numel: int) -> bool:
    """True if a tensor at these addresses (one per role; 0: none) can be walked 16 bytes at a time."""
    return numel % ALIGNMENT == 0 and all(pointer % ALIGNMENT == 0 for pointer in pointers)


class _Kept(OrderedDict):
    """The most recently used values."""

    def find(self, key, make):
        if key in self:
            self.move_to_end(key)
            return self[key]
        value = self[key] = make()
        if len(self) > KEPT:
            self.popitem(last=False)
        return value


_tables, _chunk_lists, _numbers = _Kept(), _Kept(), _Kept()


def table_of(rows: Sequence[Sequence[Tensor] | None], chunk: int, check) -> Table:
    """The table for these rows, the first of which must be a list. `check()` raises on bad lists; it is called before
    a table is made, not when one is found."""
    device = rows[0][0].device
    pointers = tuple(None if row is None else tuple(map(Tensor.data_ptr, row)) for row in rows)
    facts = tuple(None if row is None else (*map(_shape, row), *map(_dtype, row), _order(row)) for row in rows)
    # A table is made on a stream and serves that stream: its memory may be given away when it is dropped.
    stream = None if device.type == "cpu" else torch.get_device_module(device).current_stream(device)

    def make() -> Table:
        check()
        count = len(rows[0])
        numels = tuple(tensor.numel() for tensor in rows[0])
        filled = [(0,) * count if row is None else row for row in pointers]
        vector = tuple(is_vector([row[i] for row in filled], numel) for i, numel in enumerate(numels))
        key = numels, vector, chunk, device
        numel, chunks, total = _chunk_lists.find(key, lambda: _cut(*key))
        return Table(_upload(filled, torch.int64, device), numel, chunks, total)

    return _tables.find((pointers, facts, chunk, device, stream), make)


def _order(row: Sequence[Tensor]) -> tuple | None:
    """Strides, unless all tensors of the row are contiguous: then shapes say it all, and this is called every sweep."""
    return None if all(map(Tensor.is_contiguous, row)) else tuple(map(Tensor.stride, row))


def _cut(numels, vector, chunk, device) -> tuple[Tensor, list[Chunks], int]:
    lists, total = [], 0
    for kind in (True, False):
        pairs = [
            (i, low)
            for i, numel in enumerate(numels)
            if vector[i] is kind
            for low in range(0, numel, chunk)
        ]  # fmt: skip
        if pairs:
            tensor_of, offset_of = zip(*pairs, strict=True)
            lists.append(
                Chunks(_upload(tensor_of, torch.int32, device), _upload(offset_of, torch.int64, device), kind, total)
            )
            total += len(pairs)
    return _upload(numels, torch.int64, device), lists, total


def numbers(values: tuple, device: torch.device) -> Tensor:
    """Per-tensor scalars as float32 in device memory; kept while they stay the same."""
    return _numbers.find((values, device), lambda: _upload(values, torch.float32, device))


def _upload(values, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One copy that the host does not wait for; torch keeps the pinned memory until it is done."""
    host = torch.tensor(values, dtype=dtype, device="cpu")
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)
