"""Counts what sweeps cost: launches and bytes of device memory, from the lists that a call really reads and writes.

with metered() as meter:
    ...
meter.launches, meter.bytes, meter.sweeps  # sweeps: [(operation, launches, bytes), ...]
meter.rebuilds, meter.rewrites             # tables made; tables kept and written again
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Meter:
    """rebuilds: tables and lists of numbers for which device memory was made (none, once a run has settled). rewrites:
    those that were kept, and to which new addresses or numbers were copied."""

    sweeps: list[tuple[str, int, int]] = field(default_factory=list)
    rebuilds: int = 0
    rewrites: int = 0

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


def count_rebuild() -> None:
    if _active is not None:
        _active.rebuilds += 1


def count_rewrite() -> None:
    if _active is not None:
        _active.rewrites += 1
