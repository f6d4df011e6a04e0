"""How the CPU backend walks over lists of tensors: small ones together, large ones a cache-sized tile at a time."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .checks import is_dense
from .direction import NARROW

TILE = 1 << 19  # elements: 2 MiB of fp32; larger ones leave the cache, smaller ones pay for the loop
SMALL = 1 << 13  # elements: smaller tensors are worked on together, an operation on one costs more than its elements


class Scratch:
    """Tile-sized buffers, made once a call."""

    def __init__(self):
        self._buffers: dict[tuple, Tensor] = {}

    def like(self, tile: Tensor, number: int) -> Tensor:
        """Memory of the tile's size, in the dtype that it is computed on in."""
        dtype = torch.float32 if tile.dtype in NARROW else tile.dtype
        if tile.ndim != 1 or tile.numel() > TILE:
            return torch.empty_like(tile, dtype=dtype)
        key = number, dtype
        if key not in self._buffers:
            self._buffers[key] = torch.empty(TILE, dtype=dtype, device=tile.device)
        return self._buffers[key][: tile.numel()]

    def one(self, tile: Tensor) -> Tensor:
        """A 1 of the tile's dtype, for `addcmul`."""
        key = 0, tile.dtype, None
        if key not in self._buffers:
            self._buffers[key] = torch.ones((), dtype=tile.dtype)
        return self._buffers[key]

    def wide(self, tile: Tensor, number: int) -> Tensor:
        return self.like(tile, number).copy_(tile) if tile.dtype in NARROW else tile


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
    small: dict[object, list[int]] = {}
    for i, tensor in enumerate(lists[0]):
        if tensor.numel() < SMALL and is_dense(tensor):
            small.setdefault(keys[i], []).append(i)
        else:
            yield [i], [None if tensors is None else tensors[i] for tensors in lists]
    for indices in small.values():
        sizes = [lists[0][i].numel() for i in indices]
        flat = [None if tensors is None else [_flat(tensors[i]) for i in indices] for tensors in lists]
        merged = [None if tensors is None else torch.cat(tensors) for tensors in flat]
        yield indices, merged
        for k in written:
            torch._foreach_copy_(flat[k], merged[k].split(sizes))


def _flat(tensor: Tensor) -> Tensor:
    """A dense tensor's elements in the order of memory."""
    return tensor.view(-1) if tensor.is_contiguous() else tensor.as_strided((tensor.numel(),), (1,))
