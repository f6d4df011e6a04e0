"""Second passes draw what their first ones drew: the same units are dropped at w and at w + eps.

Only generators that a first pass has moved are put back, before its second pass and, to where the last first pass left
them, after it. Most models move none, and a host that puts all of them back spends a millisecond a step.
"""

import torch

from ..runtime import RngState


class Replays:
    """The random states of one step's first passes, by micro-batch and stream."""

    def __init__(self, device: torch.device):
        self._device = device
        self._first: dict[tuple[int, str], tuple[RngState, list[str]]] = {}
        self._moved: set[str] = set()
        self._latest: RngState | None = None

    def begin(self) -> None:
        """First passes follow, one after the other."""
        self._latest = RngState(self._device)

    def record(self, number: int, stream: str) -> None:
        """The first pass over this micro-batch is over."""
        before, self._latest = self._latest, RngState(self._device)
        moved = before.moved(self._latest)
        self._first[number, stream] = before, moved
        self._moved.update(moved)

    def repeat(self, number: int, stream: str) -> None:
        """The second pass over this micro-batch follows."""
        before, moved = self._first[number, stream]
        before.restore(moved)

    def end(self) -> None:
        """No second pass follows: the generators as the first passes left them."""
        self._latest.restore(self._moved)

    def clear(self) -> None:
        self._first.clear()
