"""Numbers that a step computes on the device, read together: each reading makes the host wait for the device.

A loss is remembered when its pass is over and read with the next norm. What a pass computed is known to be finite only
then, which is early enough: nothing has moved a weight before.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..runtime import all_true


class Readings:
    """Of one step. step: its number, for error messages."""

    def __init__(self, step: int, device: torch.device, processes: int):
        self._step, self._device, self._processes = step, device, processes
        self._unread: list[tuple[str, Mapping[str, Tensor]]] = []

    def later(self, what: str, values: Mapping[str, Tensor]) -> None:
        """Read these with others, and raise FloatingPointError for `what` if one of them is not finite."""
        self._unread.append((what, values))

    def read(self, values: Sequence[Tensor], what: str | None = None) -> list[float]:
        """The numbers of these tensors, read together with those that are unread: the host waits once.

        what: name of the norm whose squares they are, in the error if they are not finite; None where that is no error.
        """
        unread, self._unread = self._unread, []
        flat = [value.detach().reshape(-1) for _, named in unread for value in named.values()]
        flat += [value.detach().reshape(-1) for value in values]
        if len({value.device for value in flat}) > 1:
            flat = [value.cpu() for value in flat]
        numbers = torch.cat(flat).tolist() if flat else []  # float32 and float64 become float64
        groups, place = [], 0
        for name, named in unread:
            groups.append((name, dict(zip(named, numbers[place : place + len(named)], strict=True))))
            place += len(named)
        found = numbers[place:]
        if what is not None:
            groups.append((what, {"clean": sum(math.sqrt(number) for number in found)}))
        self.require_finite(groups)
        return found

    def require_finite(self, groups: Sequence[tuple[str, Mapping[str, float]]]) -> None:
        """groups: what was computed, and its numbers by name. Raises FloatingPointError on all processes together."""
        bad = [group for group in groups if not all(map(math.isfinite, group[1].values()))]
        if not groups or all_true(not bad, self._device, self._processes):
            return
        what, numbers = (bad or groups)[0]
        mine = ", ".join(f"{name}: {number}" for name, number in numbers.items())
        raise FloatingPointError(
            f"Non-finite {what} of step {self._step} ({mine}; on another process if these are finite). Weights are as "
            "before the step. Lower the learning rate or rho, raise alpha, or check the data and the loss."
        )
