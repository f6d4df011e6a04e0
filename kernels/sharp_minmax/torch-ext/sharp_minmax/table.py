"""Where the data lies: chunk lists and pointer tables in device memory, so that one launch serves many tensors.

A sweep walks rows: lists of equally long tensors, one list per role (weights, gradients, masks, ...). Each tensor is
cut into chunks, and a program of the kernel's grid works on one chunk:

    pointers   int64 (roles, tensors)   where each tensor begins; 0 for a role that the kernel does not read
    numel      int64 (tensors,)
    tensor_of  int32 (chunks,)          which tensor a chunk belongs to
    offset_of  int64 (chunks,)          where in that tensor it begins, in elements

There are two chunk lists: "vector" for tensors whose pointers are all multiples of 16 bytes and whose length is a
multiple of 8 elements, what a thread takes at a time: float32 and bfloat16 move 16 bytes a load. "scalar" for the
others. Empty tensors have no chunks.

A table is kept for rows of the same shapes, dtypes, orders of memory and devices, and serves tensors at any address:
where they have moved, as gradients do in every step, only the addresses are written again (see `staging`). What is
known of a list never comes from its `id()`: it stays true whatever tensors the list holds.
"""

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, count
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

from .staging import Rewritten, stream_of, upload

POINTERS, LENGTHS = 16, 8  # what a pointer (bytes) and a length (elements) must be multiples of
KEPT = 128  # tables; a step of Sharp MinMax uses about six

_shape, _dtype, _device = attrgetter("shape"), attrgetter("dtype"), attrgetter("device")


class Steady(tuple):
    """Tensors that stay where and as they are (weights' memory, masks, shadows, moments): what is known of them is read
    once. Not for parameters, whose `.data` can be exchanged: pass them detached."""

    known: tuple[int, Tensor] | None = None


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


def is_vector(pointers: Tensor, numels: Tensor) -> Tensor:
    """Which tensors can be walked 16 bytes at a time. pointers: (roles, tensors), 0 for none; numels: (tensors,)."""
    return (pointers % POINTERS == 0).all(0) & (numels % LENGTHS == 0)


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


_slots, _chunk_lists, _numbers, _facts_seen = _Kept(), _Kept(), _Kept(), _Kept()
_names = count(1)


class _Slot:
    """A table, and the addresses in it. written: roles whose tensors must not share memory with each other."""

    def __init__(self, rows, pointers: Tensor, written: Sequence[int], chunk: int, device: torch.device):
        self._written = [k for k in written if rows[k] is not None]
        self._sizes = torch.tensor([tensor.nbytes for k in self._written for tensor in rows[k]], dtype=torch.int64)
        self._numels = torch.tensor([tensor.numel() for tensor in rows[0]], dtype=torch.int64)
        self._where = chunk, device, stream_of(device)
        self._pointers = pointers
        self._memory = Rewritten(pointers, device)
        self._vector = is_vector(pointers, self._numels)
        self.table = self._cut(self._vector)

    def move(self, pointers: Tensor, check: Callable[[], object]) -> None:
        """Serve the same kind of tensors at these addresses; `check()` is called if they may overlap, and raises."""
        if torch.equal(pointers, self._pointers):
            return
        if self._overlap(pointers):
            check()
        self._pointers = torch.full_like(pointers, -1)  # unknown, should the writing be interrupted
        self._memory.write(pointers)
        vector = is_vector(pointers, self._numels)
        if not torch.equal(vector, self._vector):  # a view that is less aligned: into a DDP bucket, say
            self.table, self._vector = self._cut(vector), vector
        self._pointers = pointers

    def _overlap(self, pointers: Tensor) -> bool:
        if not self._written or torch.equal(pointers[self._written], self._pointers[self._written]):
            return False
        full = self._sizes > 0
        starts = pointers[self._written].flatten()[full]
        starts, order = starts.sort()
        ends = starts + self._sizes[full][order]
        return bool((starts[1:] < ends[:-1]).any())

    def _cut(self, vector: Tensor) -> Table:
        key = *self._numels.tolist(), *vector.tolist(), *self._where
        cut = _chunk_lists.find(key, lambda: _cut(self._numels, vector, *self._where[:2]))
        return Table(self._memory.tensor, *cut)


def table_of(
    rows: Sequence[Sequence[Tensor] | None], chunk: int, check: Callable[[], object], written: Sequence[int] = ()
) -> Table:
    """The table for these rows, the first of which must be a list; it is true until the next call.

    check: raises on bad lists. It is called where lists of this kind are new, and where the roles in `written`, which
    must not share memory, have moved and do.
    """
    device = rows[0][0].device
    known = [None if row is None else _read(row) for row in rows]
    pointers = torch.zeros((len(rows), len(rows[0])), dtype=torch.int64)
    key = tuple(0 if one is None else one[0] for one in known), chunk, tuple(written), device, stream_of(device)
    new = key not in _slots
    if new:
        check()
    for k, one in enumerate(known):
        if one is not None:
            pointers[k] = one[1]
    slot = _slots.find(key, lambda: _Slot(rows, pointers, written, chunk, device))
    if not new:
        slot.move(pointers, check)
    return slot.table


def _read(row: Sequence[Tensor]) -> tuple[int, Tensor]:
    """A name for what all lists like this one have in common, and the addresses of this one."""
    if isinstance(row, Steady):
        if row.known is None:
            row.known = _facts(row), _addresses(row)
        return row.known
    return _facts(row), _addresses(row)


def _facts(row: Sequence[Tensor]) -> int:
    # Strides only where tensors are not contiguous: else shapes say it all, and this is read in every sweep.
    order = None if all(map(Tensor.is_contiguous, row)) else tuple(map(Tensor.stride, row))
    facts = tuple(map(_shape, row)), _one_or_all(map(_dtype, row)), _one_or_all(map(_device, row)), order
    return _facts_seen.find(facts, lambda: next(_names))


def _one_or_all(values: Iterable) -> tuple:
    values = list(values)
    return (values[0],) if values.count(values[0]) == len(values) else tuple(values)


def _addresses(row: Sequence[Tensor]) -> Tensor:
    return torch.frombuffer(array("q", map(Tensor.data_ptr, row)), dtype=torch.int64)


def _cut(numels: Tensor, vector: Tensor, chunk: int, device: torch.device) -> tuple[Tensor, list[Chunks], int]:
    lists, total = [], 0
    for kind in (True, False):
        tensors = (vector == kind).nonzero().flatten()
        pieces = (numels[tensors] + chunk - 1) // chunk
        tensor_of = tensors.repeat_interleave(pieces)
        if len(tensor_of):
            begins = (pieces.cumsum(0) - pieces).repeat_interleave(pieces)
            offset_of = (torch.arange(len(tensor_of)) - begins) * chunk
            lists.append(Chunks(upload(tensor_of.to(torch.int32), device), upload(offset_of, device), kind, total))
            total += len(tensor_of)
    return upload(numels, device), lists, total


def numbers(name: str, values: list, device: torch.device) -> Tensor:
    """Numbers of a kind, one or a tuple for each tensor, as float32 in device memory; true until the next call for as
    many of that kind. Written again where they have changed."""
    width = len(values[0]) if isinstance(values[0], tuple) else 1
    key = name, len(values), width, device, stream_of(device)
    entry = _numbers.find(key, lambda: [None, None])  # memory, and what is in it
    memory, last = entry
    if values != last:
        entry[1] = None  # unknown, should the writing be interrupted
        flat = torch.frombuffer(array("f", chain.from_iterable(values) if width > 1 else values), dtype=torch.float32)
        flat = flat.view(len(values), width)
        if memory is None:
            memory = Rewritten(flat, device)
        else:
            memory.write(flat)
        entry[:] = memory, list(values)
    return memory.tensor
