"""The optimizer steps of a run: collect a window, let the method run over it, keep what is logged."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .context import StepContext
from .structure import Structure
from .window import Window


class Steps:
    """method_step: `Method.step`.

    last: the window of the latest step, for its norm and for undoing it.
    """

    def __init__(self, context: StepContext, method_step: Callable[[Window], None]):
        self.context = context
        self.last: Window | None = None
        self._method_step = method_step
        self._sums: dict[str, tuple[Tensor, int]] = {}  # stream -> sum of its losses, steps that had it
        self._cosines: dict[str, list[float]] = {}
        self._structure: Structure | None = None

    def make(self, batches: Sequence[Mapping[str, Any]], step: int, progress: float) -> Tensor:
        """Run the method over a window's micro-batches; see `Window` for the arguments. Returns this process's share of
        the window's objective; `.grad` holds the step's gradient, the weights are what they were."""
        if self._structure is None or not self._structure.holds():
            self._structure = Structure(self.context)
        self.last = Window(self.context, self._structure, batches, step, progress)
        objective = self.last.run(self._method_step)
        for stream, loss in self.last.stream_losses.items():
            total, steps = self._sums.get(stream, (0, 0))
            self._sums[stream] = total + loss, steps + 1
        for name, cosines in self.last.sweeps.cosines.items():
            self._cosines.setdefault(name, []).extend(cosines)
        return objective

    def take_logs(self) -> dict[str, float]:
        """Means since they were last taken: `loss_<stream>`, over all processes, and `perturbation_cosine` (and
        `perturbation_cosine_cast`) of this one. All processes must ask together."""
        logs = {}
        for stream, (total, steps) in sorted(self._sums.items()):
            logs[f"loss_{stream}"] = self.context.accelerator.reduce(total / steps, reduction="mean").item()
        logs |= {name: sum(cosines) / len(cosines) for name, cosines in self._cosines.items()}
        self._sums, self._cosines = {}, {}
        return logs


class PendingWindow:
    """The micro-batches that were fetched for the step to come. A several-pass method needs all of them at its last."""

    def __init__(self) -> None:
        self._batches: list[dict] = []

    def fill(self, batches: list[dict]) -> None:
        self._batches = batches

    def take(self, inputs: dict) -> list[dict] | None:
        """The window that ends with this micro-batch; None where others of it are to come. A micro-batch that was not
        fetched with others is a window of its own."""
        window = self._batches if any(inputs is batch for batch in self._batches) else [inputs]
        if inputs is not window[-1]:
            return None
        self._batches = []
        return window


def no_objective(device: torch.device) -> Tensor:
    """What a micro-batch before the last adds to the loss that is logged: the last one adds the whole window's."""
    return torch.zeros((), device=device)
