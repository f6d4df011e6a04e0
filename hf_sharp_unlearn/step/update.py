"""From the step's gradient to the weights: which kernels and which optimizer run, clipping, and what is refused.

A method with a partition composes its gradient in a sweep that also yields its norm. Clipping then costs no sweep: the
coefficient goes into the one-sweep update of `optim` (or, with another optimizer, into torch's own scaling).
"""

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .. import kernels
from . import optim
from .sweeps import must_stay


class UpdateHooks:
    """Hooks of `Trainer`, mixed into `UnlearningTrainer`."""

    def _choose_kernels(self) -> None:
        """Raises ValueError for a `kernel_backend` that cannot run here."""
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        # A graph that was compiled or captured may hold the addresses of the parameters.
        self._in_place = bool(self.args.torch_compile) or must_stay(self.model)
        self._kernels: ModuleType = kernels.backend_for(self.args.device, weights, self.args.kernel_backend)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.method.single_step:  # what the method leaves is the update: w <- w - 1 * update, and nothing else
            if self.optimizer is None:
                weights = [weight for weight in self.model.parameters() if weight.requires_grad]
                self.optimizer = torch.optim.SGD(weights, lr=1.0)
            return self.optimizer
        if self.optimizer is not None or self.optimizer_cls_and_kwargs is not None or self.method.fraction is None:
            return super().create_optimizer(model)
        cls, options = self.get_optimizer_cls_and_kwargs(self.args, self.model if model is None else model)
        self.optimizer_cls_and_kwargs = optim.sweeping(cls, options)
        try:
            return super().create_optimizer(model)
        finally:
            self.optimizer_cls_and_kwargs = None

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        if self.method.single_step and self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, lambda step: 1.0)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if self.method.single_step:
            return None
        norm = self._last_window.norm
        return super()._clip_grad_norm(model) if norm is None else norm

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Called once a step, after `_clip_grad_norm` if there is a limit: check the norm, and stage the update."""
        norm = self._last_window.norm if grad_norm is None else grad_norm
        try:
            norm = super()._get_grad_norm(model, grad_norm=norm)
        except BaseException:
            self._last_window.undo()
            raise
        if not self._last_window.scaled and not math.isfinite(norm):
            self._last_window.undo()
            raise FloatingPointError(
                f"Non-finite norm of the gradient of step {self.state.global_step + 1}: {float(norm)}. Weights "
                "are as before the step. Lower the learning rate or rho, raise alpha, or check data and loss."
            )
        if self._last_window.norm is not None:
            self._stage(norm)
        return norm

    # ---- frozen weights: those outside the forget part stay what they are, bit for bit ----

    _hook: RemovableHandle | None = None

    def _freeze_outside(self, optimizer: torch.optim.Optimizer) -> None:
        """A gradient of 0 does not keep a weight where it is: decay, momentum and moments move it. Put it back.
        Costs a copy of the weights, and a sweep a step."""
        named = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        outside = {name: weight for name, weight in named.items() if not self.partition.masks[name].all()}
        held = [(weight, self.partition.masks[name], weight.detach().clone()) for name, weight in outside.items()]

        @torch.no_grad()
        def put_back(*_: Any) -> None:
            for weight, mask, value in held:
                torch.where(mask, weight, value, out=weight)

        self._unfreeze()
        self._hook = optimizer.register_step_post_hook(put_back)

    def _unfreeze(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _stage(self, norm: float) -> None:
        limit = self.args.max_grad_norm
        scale = min(1.0, limit / (norm + 1e-6)) if limit and limit > 0 else 1.0  # torch's clip_grad_norm_
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        if isinstance(optimizer, optim.SGD | optim.AdamW) and optimizer.can_sweep:
            optimizer.stage(scale=scale, backend=self._kernels)
        elif scale < 1:
            torch._foreach_mul_(self._gradients(), scale)

    def _unstage(self) -> None:
        """A step that was staged and never made, because a callback raised, is not the user's next one."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        if isinstance(optimizer, optim.SGD | optim.AdamW):
            optimizer.unstage()

    def _gradients(self) -> list[Tensor]:
        return [weight.grad for weight in self._last_window.params if weight.grad is not None]
