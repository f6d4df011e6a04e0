"""Snapshots of a module's buffers (BatchNorm statistics, counters), exact whatever a forward does to them."""

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

Snapshot = list[tuple[nn.Module, str, Tensor, Tensor | None]]


class Buffers:
    """The buffers of a module and its children."""

    def __init__(self, module: nn.Module):
        self._places = [(owner, name) for owner in module.modules() for name in owner._buffers]

    def tensors(self) -> list[Tensor]:
        """The buffers that can be written in place, as they are now."""
        now = {id(owner._buffers[name]): owner._buffers[name] for owner, name in self._places}
        return [buffer for buffer in now.values() if buffer is not None and not _overlaps(buffer)]

    def take(self) -> Snapshot:
        """Remember every buffer: the tensor object, because forward may put another one in its place, and its values
        (not those of an expanded tensor: nothing can write to it)."""
        return [
            (owner, name, buffer, None if _overlaps(buffer) else buffer.clone())
            for owner, name in self._places
            if (buffer := owner._buffers[name]) is not None
        ]

    @staticmethod
    def put_back(snapshot: Snapshot) -> None:
        for owner, name, buffer, value in snapshot:
            owner._buffers[name] = buffer
            if value is not None:
                buffer.detach().copy_(value)


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
        Buffers.put_back(buffers)
        for part, mode in modes.items():
            part.training = mode
