"""Snapshots of a module's buffers (BatchNorm statistics, counters), exact whatever a forward does to them.

A ResNet-50 has 159 buffers: copied one by one they are the most kernels of a step outside forward and backward. Buffers
of one dtype and device are copied together, into memory that a `Buffers` keeps.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Snapshot(NamedTuple):
    """places: (owner, name, the tensor object there). live, values: the tensors that can be written, and copies."""

    places: list[tuple[nn.Module, str, Tensor]]
    live: list[Tensor]
    values: list[Tensor]

    def put_back(self) -> None:
        """Every buffer as it was: the tensor object, because forward may have put another one in its place, and its
        values."""
        for owner, name, buffer in self.places:
            owner._buffers[name] = buffer
        _copy(self.values, self.live)


class Buffers:
    """The buffers of a module and its children."""

    def __init__(self, module: nn.Module):
        self._places = [(owner, name) for owner in module.modules() for name in owner._buffers]
        self._kept: dict[str, Snapshot] = {}

    def tensors(self) -> list[Tensor]:
        """The buffers that can be written in place, as they are now."""
        return _writable(owner._buffers[name] for owner, name in self._places)

    def take(self, kept: str | None = None) -> Snapshot:
        """Remember every buffer (not the values of an expanded tensor: nothing can write to it).

        kept: a name under which the snapshot's memory is kept: the next one of this name overwrites it.
        """
        places = [
            (owner, name, buffer)
            for owner, name in self._places
            if (buffer := owner._buffers[name]) is not None
        ]  # fmt: skip
        live = _writable(buffer for _, _, buffer in places)
        old = self._kept.get(kept)
        if old is not None and _fits(old, live):
            values = old.values
        else:
            values = [torch.empty_like(buffer, requires_grad=False) for buffer in live]
        snapshot = Snapshot(places, live, values)
        _copy(live, values)
        if kept is not None:
            self._kept[kept] = snapshot
        return snapshot


def _fits(old: Snapshot, live: list[Tensor]) -> bool:
    return list(map(id, old.live)) == list(map(id, live)) and all(
        (value.shape, value.dtype, value.device) == (buffer.shape, buffer.dtype, buffer.device)
        for value, buffer in zip(old.values, live, strict=True)
    )


def _writable(buffers: Iterable[Tensor | None]) -> list[Tensor]:
    """Each tensor once, without those that lie on top of themselves."""
    each = {id(buffer): buffer for buffer in buffers if buffer is not None}
    return [buffer for buffer in each.values() if not _overlaps(buffer)]


@torch.no_grad()
def _copy(sources: Sequence[Tensor], outs: Sequence[Tensor]) -> None:
    together: dict[tuple, tuple[list[Tensor], list[Tensor]]] = {}
    for source, out in zip(sources, outs, strict=True):
        if type(source) is Tensor and type(out) is Tensor and source.layout == torch.strided:
            pair = together.setdefault((source.dtype, source.device), ([], []))
            pair[0].append(source)
            pair[1].append(out)
        else:  # subclasses need not know the operation on lists
            out.detach().copy_(source)
    for some, others in together.values():
        torch._foreach_copy_(others, some)


def _overlaps(buffer: Tensor) -> bool:
    return any(stride == 0 and size > 1 for stride, size in zip(buffer.stride(), buffer.shape, strict=True))


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in eval mode inside the block; afterwards its buffers, and the mode of each part, are as before."""
    modes = {part: part.training for part in module.modules()}
    buffers = Buffers(module).take()
    module.eval()
    try:
        yield
    finally:
        buffers.put_back()
        for part, mode in modes.items():
            part.training = mode
