"""One standalone loop with the semantics of the code that was released with Sharp MinMax, to measure their effect.

It differs from the paper's description, and from `hf_sharp_unlearn`, in five ways. Whether published numbers were made
with them is not known.

    mask         the *smallest* gradients on the forget set are the forget part (m = 1)
    leak         the mask multiplies the perturbed gradient only, after the clean one was stored:
                 retain: g0 + lam ((1 - m) g1 - g0), with lam = 1: (1 - m) g1
                 forget: g0 - lam (m g1 - g0), with lam = 1: 2 g0 - m g1, outside its mask ascent at twice the rate
    order        the forget half starts from the weights that the retain half has just moved
    optimizers   one for each half, each over all parameters, with momentum of its own; both decay all weights
    BatchNorm    forget batches enter the statistics

    eps = rho w^2 g0 / (|| |w| g0 || + 1e-12)    for both halves, over all parameters

Symbols as in `methods/sharp_minmax.py`. Written from a description of that code (commit 98c41d9), not from its text.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]


def smallest_gradient_mask(model: nn.Module, batches: Sequence[Batch], fraction: float) -> list[Tensor]:
    """1 on the `fraction` smallest of | sum over batches of grad of the batch's mean loss |, ranked over all parameters
    together, in eval mode."""
    weights = list(model.parameters())
    total = [torch.zeros_like(weight) for weight in weights]
    model.eval()
    for batch in batches:
        grads = torch.autograd.grad(-model(**batch).loss, weights)
        for mine, grad in zip(total, grads, strict=True):
            mine += grad
    flat = torch.cat([value.abs().reshape(-1) for value in total])
    mask = torch.zeros_like(flat)
    mask[flat.argsort()[: int(fraction * len(flat))]] = 1
    return [
        piece.view_as(weight) for piece, weight in zip(mask.split([w.numel() for w in weights]), weights, strict=True)
    ]


def released_sharp_minmax(
    model: nn.Module,
    retain: Callable[[int], Iterator[Batch]],
    forget: Sequence[Batch],
    *,
    alpha: float,
    fraction: float,
    learning_rate: float,
    epochs: int,
    rho: float = 1.0,
    lam: float = 1.0,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
) -> None:
    """Unlearn in place.

    retain(epoch): the epoch's batches {"pixel_values": ..., "labels": ...}. forget: its batches, repeated in order.
    """
    weights = list(model.parameters())
    forget_mask = smallest_gradient_mask(model, forget, fraction)
    retain_mask = [1 - mask for mask in forget_mask]
    options = {"lr": learning_rate, "momentum": momentum, "weight_decay": weight_decay}
    optimizers = [torch.optim.SGD(weights, **options) for _ in range(2)]
    model.train()
    drawn = 0
    for epoch in range(epochs):
        for batch in retain(epoch):
            _half_step(model, weights, optimizers[0], batch, alpha, retain_mask, lam, rho)
            _half_step(model, weights, optimizers[1], forget[drawn % len(forget)], alpha - 1, forget_mask, -lam, rho)
            drawn += 1


def _half_step(model, weights, optimizer, batch, coefficient, mask, lam, rho) -> None:
    clean = torch.autograd.grad(coefficient * model(**batch).loss, weights)
    with torch.no_grad():
        length = torch.stack([(w.abs() * g).norm() for w, g in zip(weights, clean, strict=True)]).norm() + 1e-12
        before = [weight.clone() for weight in weights]
        for weight, grad in zip(weights, clean, strict=True):
            weight += rho / length * weight**2 * grad
    with _frozen_statistics(model):
        moved = torch.autograd.grad(coefficient * model(**batch).loss, weights)
    with torch.no_grad():
        for weight, old, g0, g1, part in zip(weights, before, clean, moved, mask, strict=True):
            weight.copy_(old)
            weight.grad = g0 + lam * (part * g1 - g0)
    optimizer.step()


@contextlib.contextmanager
def _frozen_statistics(model: nn.Module) -> Iterator[None]:
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    momenta = [part.momentum for part in norms]
    for part in norms:
        part.momentum = 0.0
    try:
        yield
    finally:
        for part, momentum in zip(norms, momenta, strict=True):
            part.momentum = momentum
