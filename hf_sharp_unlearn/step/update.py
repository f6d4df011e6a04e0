"""From the step's gradient to the weights: which optimizer makes the step, clipping, and weights that are frozen.

A method with a partition composes its gradient in a sweep that also yields its norm. Clipping then costs no sweep: the
coefficient goes into the one-sweep update of `optim` (or, with another optimizer, into torch's own scaling).
"""

import math
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .optim import SGD, AdamW
from .skips import Skips
from .window import Window


def whole_update(model: nn.Module) -> torch.optim.Optimizer:
    """For a method whose single step leaves the update itself: w <- w - 1 * update, and nothing else."""
    return torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=1.0)


def unchanging(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """The schedule of `whole_update`."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)


class Update:
    """The optimizer's side of a run's steps. optimizer: may be accelerate's wrapper. kernels: a backend."""

    def __init__(self, optimizer: Any, kernels: ModuleType, max_grad_norm: float | None):
        self.optimizer = getattr(optimizer, "optimizer", optimizer)
        self.skips = Skips(optimizer)
        self._kernels, self._limit = kernels, max_grad_norm
        self._hook: RemovableHandle | None = None

    @property
    def _sweeps(self) -> bool:
        return isinstance(self.optimizer, SGD | AdamW) and self.optimizer.can_sweep

    def stage(self, window: Window, norm: float) -> None:
        """Clip: in the one-sweep update to come, or in `.grad`. norm: of the window's gradient."""
        scale = min(1.0, self._limit / (norm + 1e-6)) if self._limit and self._limit > 0 else 1.0  # torch's clipping
        if self._sweeps:
            self.optimizer.stage(scale=scale, backend=self._kernels)
        elif scale < 1:
            torch._foreach_mul_([weight.grad for weight in window.params if weight.grad is not None], scale)

    def freeze(self, trainable: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor], ours: bool) -> None:
        """Keep weights with mask False what they are, bit for bit, whatever the optimizer does.

        A gradient of 0 does not do that: decay, momentum and moments move a weight. They are put back after each step,
        for a copy of the weights and a sweep a step; `ours`, an optimizer of `optim` that began with this run, needs
        neither where nothing decays: its moments of these weights are 0 and stay so.
        """
        if ours and self._sweeps and not any(group["weight_decay"] for group in self.optimizer.param_groups):
            return
        held = [
            (weight, masks[name], weight.detach().clone())
            for name, weight in trainable.items()
            if not masks[name].all()
        ]

        @torch.no_grad()
        def put_back(*_: Any) -> None:
            for weight, mask, value in held:
                torch.where(mask, weight, value, out=weight)

        self._hook = self.optimizer.register_step_post_hook(put_back)

    def release(self) -> None:
        """The optimizer is its owner's again. A step that was staged and never made, because a callback raised, is not
        the owner's next one."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        if isinstance(self.optimizer, SGD | AdamW):
            self.optimizer.unstage()


def checked_norm(window: Window, norm_of: Callable[[], Any], step: int, skips: Skips | None = None) -> Any:
    """The norm of the step's gradient. Whatever is raised on the way, the step is undone first.

    Raises FloatingPointError if it, or a loss that is unread, is not finite; under fp16 the scaler sees to that, and
    skips says when it cannot.
    """
    try:
        if skips is not None:
            skips.look(window)
        norm = norm_of()
        value = 0.0 if window.scaled else window.settle(norm)
        if not math.isfinite(value):
            raise FloatingPointError(
                f"Non-finite norm of the gradient of step {step}: {value}. Weights are as before the step. Lower the "
                "learning rate or rho, raise alpha, or check data and loss."
            )
    except BaseException:
        window.undo()
        raise
    return norm
