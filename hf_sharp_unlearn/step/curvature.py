"""Curvature of the training loss without a matrix: Gauss-Newton products, and conjugate gradients over them.

G = E[J^T H J]    J: Jacobian of the logits, H: Hessian of the cross-entropy in the logits, diag(p) - p p^T

G is the Fisher information of a softmax classifier, and its Hessian without the second derivatives of the network; it
has no negative eigenvalue (Martens, arXiv 1412.1193). A product G v costs a forward and three backward passes, one of
them through a backward pass: it works for every layer that can be differentiated twice, and holds nothing but vectors.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Vector = list[Tensor]


def gauss_newton_product(
    params: Sequence[nn.Parameter], batches: Iterable[Any], logits_and_items: Callable[[Any], tuple[Tensor, Tensor]]
) -> Callable[[Vector], tuple[Vector, int]]:
    """Return a function v -> (sum over all items of J^T H J v, number of items).

    batches: iterated anew for each product. logits_and_items(batch): logits (..., classes) with a graph to `params`,
    and a boolean tensor (...) of what is counted.
    """

    def product(vector: Vector) -> tuple[Vector, int]:
        total, count = [torch.zeros_like(v) for v in vector], 0
        with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no second derivative
            for batch in batches:
                logits, items = logits_and_items(batch)
                pulled = torch.zeros_like(logits, requires_grad=True)
                back = torch.autograd.grad(logits, params, pulled, create_graph=True, materialize_grads=True)
                (pushed,) = torch.autograd.grad(back, pulled, list(vector), materialize_grads=True)  # J v
                chance = logits.detach().softmax(-1)
                curved = chance * (pushed - (chance * pushed).sum(-1, keepdim=True)) * items[..., None]
                torch._foreach_add_(total, torch.autograd.grad(logits, params, curved, materialize_grads=True))
                count += int(items.sum())
        return total, count

    return product


def conjugate_gradients(
    product: Callable[[Vector], Vector], target: Vector, iterations: int, tolerance: float
) -> tuple[Vector, float, int]:
    """Solve A x = target for a symmetric positive definite A.

    Stops when || A x - target || <= tolerance * || target ||, or after `iterations` products. Returns (x, that ratio,
    products made). The start is x = 0, so an early stop gives a shorter x, never a longer one. Raises
    FloatingPointError if A is not positive definite along the way, or anything is not finite.
    """
    x = [torch.zeros_like(t) for t in target]
    residual = [t.clone() for t in target]
    direction = [t.clone() for t in target]
    squared = start = _dot(residual, residual)
    if not math.isfinite(start):
        raise FloatingPointError(f"Non-finite right-hand side of conjugate gradients: squared norm {start}.")
    made = 0
    while made < iterations and squared > tolerance**2 * start:
        image = product(direction)
        made += 1
        curvature = _dot(direction, image)
        if not (math.isfinite(curvature) and curvature > 0):
            raise FloatingPointError(
                f"Curvature {curvature} along a direction of conjugate gradients, product {made}: raise the damping."
            )
        step = squared / curvature
        torch._foreach_add_(x, direction, alpha=step)
        torch._foreach_add_(residual, image, alpha=-step)
        squared, before = _dot(residual, residual), squared
        torch._foreach_mul_(direction, squared / before)
        torch._foreach_add_(direction, residual)
    return x, math.sqrt(squared / start) if start else 0.0, made


def _dot(a: Vector, b: Vector) -> float:
    return math.fsum(
        torch.dot(x.reshape(-1).double(), y.reshape(-1).double()).item() for x, y in zip(a, b, strict=True)
    )
