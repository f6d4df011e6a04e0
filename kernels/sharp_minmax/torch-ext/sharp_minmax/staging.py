"""Small arrays that sweeps read on the device and the host writes again and again: addresses, learning rates.

`Rewritten` is one block of device memory that stays. A new value is copied into it in stream order: kernels that were
launched before have read the old value, later ones read the new one. Making a new block for each value would not do: it
would come from the pool that gradients come from, shift where the next ones land, and so change the next addresses.

The copy starts from pinned memory, so that the host does not wait for the stream. Pinned memory may be written again
only when its copy is over, which an event tells; where none is free, one more is made (a few, as many as the host is
ahead of the device).
"""

import torch
from torch import Tensor

from .meter import count_rebuild, count_rewrite


def stream_of(device: torch.device):
    """The stream that work on this device goes to; None on a CPU. Equal streams compare equal."""
    return None if device.type == "cpu" else torch.get_device_module(device).current_stream(device)


class Rewritten:
    """A block of device memory of one shape, for one stream. tensor: what kernels read."""

    def __init__(self, value: Tensor, device: torch.device):
        self.tensor = torch.empty(value.shape, dtype=value.dtype, device=device)
        self._stream = stream_of(device)
        self._ring: list[tuple[Tensor, object]] = []  # pinned memory, and the event after its last copy
        count_rebuild()
        self._copy(value)

    def write(self, value: Tensor) -> None:
        """Let kernels launched from now on, on this stream, read `value` (its shape and dtype are the first one's)."""
        count_rewrite()
        self._copy(value)

    def _copy(self, value: Tensor) -> None:
        if self._stream is None:
            self.tensor.copy_(value)
            return
        pinned, event = self._free()
        pinned.copy_(value)
        self.tensor.copy_(pinned, non_blocking=True)
        event.record(self._stream)

    def _free(self) -> tuple[Tensor, object]:
        for pair in self._ring:
            if pair[1].query():
                return pair
        self._ring.append(self._more())
        return self._ring[-1]

    def _more(self) -> tuple[Tensor, object]:
        pinned = torch.empty(self.tensor.shape, dtype=self.tensor.dtype, device="cpu", pin_memory=True)
        return pinned, torch.get_device_module(self.tensor.device).Event()


def upload(values: Tensor, device: torch.device) -> Tensor:
    """A copy of numbers that do not change. The host does not wait; torch keeps the pinned memory until it is done."""
    return values if device.type == "cpu" else values.pin_memory().to(device, non_blocking=True)
