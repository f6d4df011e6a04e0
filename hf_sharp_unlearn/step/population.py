"""Whole data sets, for methods that make one step: gradients and curvature of the mean loss over a stream.

The model runs in eval mode (dropout off, BatchNorm at its running statistics): that is the function whose parameters
are to move. Each process reads its share of the batches; sums are reduced, so every process holds the same vectors.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime import all_reduce_mean, all_sum, evaluating, full_precision, isolated_rng
from .curvature import Vector, conjugate_gradients, gauss_newton_product

Batches = Callable[[str, int | None], Iterable[tuple[Any, int]]]


class Population:
    """Computes in full precision, whatever autocast the run has.

    batches(stream, count): (inputs, items) of this process, over the whole set, or over `count` samples of it, the
    same ones each time. loss(module, stream, inputs, items): mean over the items, or one value per sample.
    logits_and_items(module, inputs): see `curvature.gauss_newton_product`.
    """

    def __init__(
        self,
        module: nn.Module,
        batches: Batches,
        loss: Callable[[nn.Module, str, Any, int], Tensor],
        logits_and_items: Callable[[nn.Module, Any], tuple[Tensor, Tensor]],
        processes: int,
    ):
        self.module, self._batches, self._loss, self._logits = module, batches, loss, logits_and_items
        self._processes = processes
        self.items: dict[str, int] = {}  # of each stream whose gradient has been taken, over all processes
        self.params = [weight for weight in module.parameters() if weight.requires_grad]

    def mean_gradient(self, stream: str) -> tuple[Vector, float]:
        """(gradient of the stream's mean loss, the mean loss), over all processes."""
        total = [torch.zeros_like(weight) for weight in self.params]
        items, losses = 0, 0.0
        with full_precision(self.module), evaluating(self.module), isolated_rng():
            for inputs, count in self._batches(stream, None):
                value = self._loss(self.module, stream, inputs, count)
                if value.ndim:  # a value per sample
                    value, count = value.mean(), len(value)
                if count == 0:
                    continue
                grads = torch.autograd.grad(value * count, self.params, allow_unused=True)
                for mine, grad in zip(total, grads, strict=True):
                    if grad is not None:
                        mine.add_(grad)
                items += count
                losses += float(value.detach()) * count
        items, losses = all_sum([float(items), losses], self.params[0].device, self._processes)
        all_reduce_mean(total, self._processes)
        torch._foreach_mul_(total, self._processes / max(items, 1.0))
        self.items[stream] = int(items)
        return total, losses / max(items, 1.0)

    def solve(
        self, target: Vector, stream: str, *, samples: int, damping: float, iterations: int, tolerance: float
    ) -> tuple[Vector, float, int]:
        """x with (G + damping) x = target: see `conjugate_gradients`. G: Gauss-Newton matrix of the mean loss over
        `samples` samples of the stream."""
        with isolated_rng():
            batches = [inputs for inputs, _ in self._batches(stream, samples)]
        product = gauss_newton_product(self.params, batches, lambda inputs: self._logits(self.module, inputs))

        def damped(vector: Vector) -> Vector:
            image, count = product(vector)
            (count,) = all_sum([float(count)], target[0].device, self._processes)
            all_reduce_mean(image, self._processes)
            torch._foreach_mul_(image, self._processes / max(count, 1.0))
            torch._foreach_add_(image, vector, alpha=damping)
            return image

        with full_precision(self.module), evaluating(self.module):
            return conjugate_gradients(damped, target, iterations, tolerance)
