"""How the CPU backend walks over lists of tensors: small ones together, large ones a cache-sized tile at a time."""

import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .checks import is_dense
from .direction import NARROW

TILE = 1 << 18  # elements: 1 MiB of fp32; larger ones leave the cache, smaller ones pay for the loop
SMALL = 1 << 13  # elements: smaller tensors are worked on together, an operation on one costs more than its elements


class Scratch(threading.local):
    """Tile-sized buffers, made once a thread: fresh memory costs more than the arithmetic on it. About 15 MiB."""

    def __init__(self):
        self._buffers: dict[tuple, Tensor] = {}

    def buffer(self, name: object, size: int, dtype: torch.dtype) -> Tensor:
        """`size` elements, at most a tile; the same memory for the same name. What lies there is of no use."""
        key = name, dtype, TILE
        if key not in self._buffers:
            with torch.inference_mode(False):  # the buffer outlives the caller's mode
                self._buffers[key] = torch.empty(TILE, dtype=dtype, device="cpu")
        return self._buffers[key][:size]

    def like(self, tile: Tensor, number: int) -> Tensor:
        """Memory of the tile's size, in the dtype that it is computed on in."""
        dtype = torch.float32 if tile.dtype in NARROW else tile.dtype
        if tile.ndim != 1 or tile.numel() > TILE:
            return torch.empty_like(tile, dtype=dtype)
        return self.buffer(number, tile.numel(), dtype)

    def one(self, tile: Tensor) -> Tensor:
        """A 1 of the tile's dtype, for `addcmul`."""
        key = "one", tile.dtype
        if key not in self._buffers:
            with torch.inference_mode(False):
                self._buffers[key] = torch.ones((), dtype=tile.dtype, device="cpu")
        return self._buffers[key]

    def wide(self, tile: Tensor, number: int) -> Tensor:
        return self.like(tile, number).copy_(tile) if tile.dtype in NARROW else tile


SCRATCH = Scratch()


def tiles_of(*tensors: Tensor | None) -> Iterator[list[Tensor | None]]:
    """The same slice of each tensor, in the order of memory. A tensor with gaps is one tile."""
    first = next(tensor for tensor in tensors if tensor is not None)
    size = first.numel()
    if not is_dense(first):
        yield list(tensors)
        return
    flat = [None if tensor is None else _flat(tensor) for tensor in tensors]
    if size <= TILE:
        yield flat
        return
    for low in range(0, size, TILE):
        yield [None if tensor is None else tensor[low : low + TILE] for tensor in flat]


def walk(
    keys: Sequence, lists: Sequence[Sequence[Tensor] | None], written: Sequence[int] = ()
) -> Iterator[tuple[list[int], list[Tensor | None]]]:
    """Positions, and what lies there in each list: one tensor, or small tensors of one key put together.

    written: the lists that the caller writes to; what it wrote to small tensors is put back where it belongs.
    """
    small: dict[object, list[list[int]]] = {}
    room: dict[object, int] = {}
    for i, tensor in enumerate(lists[0]):
        size = tensor.numel()
        if size >= min(SMALL, TILE) or not is_dense(tensor):
            yield [i], [None if tensors is None else tensors[i] for tensors in lists]
            continue
        if room.get(keys[i], 0) < size or keys[i] not in small:
            small.setdefault(keys[i], []).append([])
            room[keys[i]] = TILE
        small[keys[i]][-1].append(i)
        room[keys[i]] -= size
    for indices in (indices for groups in small.values() for indices in groups):
        sizes = [lists[0][i].numel() for i in indices]
        flat = [None if tensors is None else [_flat(tensors[i]) for i in indices] for tensors in lists]
        merged = [
            None if parts is None else torch.cat(parts, out=SCRATCH.buffer(("list", k), sum(sizes), parts[0].dtype))
            for k, parts in enumerate(flat)
        ]
        yield indices, merged
        for k in written:
            torch._foreach_copy_(flat[k], merged[k].split(sizes))


def _flat(tensor: Tensor) -> Tensor:
    """A dense tensor's elements in the order of memory."""
    return tensor.view(-1) if tensor.is_contiguous() else tensor.as_strided((tensor.numel(),), (1,))
