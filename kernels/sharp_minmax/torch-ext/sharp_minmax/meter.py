"""Counts what sweeps cost: launches and bytes of device memory, from the lists that a call really reads and writes.

with metered() as meter:
    ...
meter.launches, meter.bytes, meter.sweeps  # sweeps: [(operation, launches, bytes), ...]
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Meter:
    sweeps: list[tuple[str, int, int]] = field(default_factory=list)

    @property
    def launches(self) -> int:
        """Kernels launched."""
        return sum(launches for _, launches, _ in self.sweeps)

    @property
    def bytes(self) -> int:
        """Bytes read plus bytes written; chunk and pointer tables and partial sums are left out (under 0.1 %)."""
        return sum(size for _, _, size in self.sweeps)


_active: Meter | None = None


@contextlib.contextmanager
def metered() -> Iterator[Meter]:
    """Count every sweep of the block. Not reentrant."""
    global _active
    _active = Meter()
    try:
        yield _active
    finally:
        _active = None


def count(operation: str, launches: int, *moved: Sequence[Tensor] | None) -> None:
    """Called by the backends: `moved` names each list once per time that it is read or written."""
    if _active is not None:
        size = sum(tensor.nbytes for tensors in moved if tensors is not None for tensor in tensors)
        _active.sweeps.append((operation, launches, size))
