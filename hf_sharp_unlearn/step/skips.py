"""Steps that a gradient scaler skips: a few are how it finds its scale, more are a fault that no scale mends.

Under fp16 a gradient that is not finite skips the step and halves the scale. A run ends when
    LIMIT steps in a row were skipped, or are about to be, whose losses were not finite: a loss is computed before it is
        scaled, so the scale cannot be the cause;
    more steps in a row were skipped than it takes to halve the scale down to 1, and LIMIT more: below that, gradients
        overflow by themselves.
Nothing is read from the device for this unless the step before was skipped, which the host knows.
"""

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..runtime import all_true
from .window import Window

LIMIT = 3
_REMEDY = "Use bf16=True, or full precision, lower the learning rate or rho, or check the data and the loss."


class Skips:
    """Of one run. optimizer: accelerate's wrapper of it, or the optimizer itself, which skips nothing."""

    def __init__(self, optimizer: Any):
        self._optimizer = optimizer
        self._scaler = getattr(optimizer, "scaler", None)
        self._made = self._row = 0  # steps that were made; that were skipped since the last one
        self._allowed = LIMIT
        self._last: Window | None = None  # the step before, whose outcome shows when the next one begins
        self._bad: list[int] = []  # the latest steps in a row whose losses were not finite
        self._known = 0  # number of the last step whose losses were read
        self._said = ""

    def look(self, window: Window) -> None:
        """Before the update of each step. Raises FloatingPointError, on all processes together."""
        if self._scaler is None:
            return
        before, self._last = self._last, window
        if before is None:
            return
        if not self._optimizer.step_was_skipped:
            self._made, self._row, self._bad = self._made + 1, 0, []
            return
        self._count(before)
        self._read(window)
        if len(self._bad) >= LIMIT:
            self._bad = self._bad[-LIMIT:]
            raise FloatingPointError(self._of_losses())
        if self._row >= self._allowed:
            raise FloatingPointError(
                f"fp16: the gradients of {self._row} steps in a row, to step {before.step}, were not finite, while "
                f"their losses were, and the gradient scaler has skipped them down to a scale of "
                f"{self._scaler.get_scale():g}: no scale mends that. Weights are as before these steps. {_REMEDY}"
            )

    def conclude(self) -> None:
        """After the last step: warn of a run that has made none."""
        if self._last is None or not self._optimizer.step_was_skipped or self._made:
            return
        self._count(self._last)
        cause = self._of_losses() if self._bad else "Make more steps, or use bf16=True."
        warnings.warn(
            f"fp16: the gradient scaler has skipped every one of the {self._row} steps of this run, and the weights "
            f"are what they were. Its scale is {self._scaler.get_scale():g} now. {cause}",
            stacklevel=2,
        )

    def _count(self, window: Window) -> None:
        """A step that was skipped."""
        if self._row == 0:
            factor = self._scaler.get_backoff_factor()
            start = self._scaler.get_scale() / factor
            self._allowed = LIMIT + max(0, math.ceil(math.log(max(start, 1.0)) / -math.log(min(factor, 0.99))))
        self._row += 1
        self._read(window)

    def _read(self, window: Window) -> None:
        if window.step == self._known:
            return
        self._known, found = window.step, {}
        for what, losses in window.scaled_losses:
            found |= _numbers(losses, what)
        fine = all(map(math.isfinite, found.values()))
        if all_true(fine, window.device, window.processes):
            self._bad = []
            return
        self._bad.append(window.step)
        self._said = ", ".join(f"{name}: {number:g}" for name, number in found.items())

    def _of_losses(self) -> str:
        steps = f"step {self._bad[0]}" if len(self._bad) == 1 else f"steps {self._bad[0]} to {self._bad[-1]}"
        return (
            f"Non-finite loss under fp16 in {steps} ({self._said}; on another process if these are finite), which the "
            f"gradient scaler skips. Its scale, {self._scaler.get_scale():g} now, is not the cause: a loss is computed "
            f"before it is scaled. Weights are as before these steps. {_REMEDY}"
        )


def _numbers(losses: Mapping[str, Tensor], what: str) -> dict[str, float]:
    if not losses:
        return {}
    values = torch.stack([value.detach().reshape(()) for value in losses.values()]).tolist()
    return {f"{stream} {what}": value for stream, value in zip(losses, values, strict=True)}
