"""The perturbation and the composition with torch's multi-tensor functions, in as few passes as they allow: a kernel
backend to compare with, not one to train with.

Masks are factors 0 and 1 in the weights' dtype, because the fast path of `torch._foreach_*` takes one dtype: NaN behind
a mask leaks. float32 and float64. There is no update: torch's optimizer makes it.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hf_sharp_unlearn import kernels
from hf_sharp_unlearn.kernels import Direction, reference

NAME = "foreach"
Masks = Sequence[Tensor] | None


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """Inside the block `kernel_backend="foreach"` is this module."""
    full = f"{kernels.__name__}.{NAME}"
    kernels.BACKENDS[NAME], sys.modules[full] = NAME, sys.modules[__name__]
    try:
        yield
    finally:
        del kernels.BACKENDS[NAME], sys.modules[full]


def pack(masks: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    packed = reference.pack(masks, weights)
    return [torch.empty_like(w, requires_grad=False).copy_(m) for m, w in zip(packed, weights, strict=True)]


def norms(weights, gradients, etas, masks: Masks = None, insides=None) -> Tensor:
    scales = _transform(weights, etas)
    sums = []
    for grads, inside in zip(gradients, insides or [None] * len(gradients), strict=True):
        values = _part(grads, masks, inside)
        if scales is not None:
            values = torch._foreach_mul(values, scales)
        sums.append(torch.stack(torch._foreach_norm(values)).double().square().sum())
    return torch.stack(sums)


def displace(weights, grads, outs, etas, scale: float, masks: Masks = None, inside: bool | None = True) -> None:
    steps, scales = _part(grads, masks, inside), _transform(weights, etas)
    if scales is not None:
        torch._foreach_mul_(scales, scales)
        torch._foreach_mul_(scales, steps)
        steps = scales
    torch._foreach_copy_(list(outs), list(weights))
    torch._foreach_add_(list(outs), steps, alpha=scale)


def perturb(weights, grads, backups, etas, scale, saved, masks: Masks = None, inside: bool | None = True) -> None:
    torch._foreach_copy_(list(backups), list(weights))
    saved.extend(range(len(weights)))
    displace(backups, grads, weights, etas, scale, masks, inside)


def restore(weights, backups, saved) -> None:
    if saved:
        torch._foreach_copy_([weights[i] for i in saved], [backups[i] for i in saved])
        saved.clear()


def compose(direction: Direction, outs=None, accumulate: bool = False) -> tuple[list[Tensor], Tensor]:
    lists = direction.lists()
    outs = list(next(lists[name] for name in ("r1", "r0", "f0") if name in lists) if outs is None else outs)
    retain = _mix(*direction.retain(), direction.lam_retain)
    forget = _ascend(*direction.forget(), direction.lam_forget)
    masks = None if direction.masks is None else list(direction.masks)
    if forget is None:
        d = _part(retain, masks, None if direction.overlap else False)
    elif retain is None:
        d = torch._foreach_mul(forget, masks)
    elif direction.overlap:
        d = torch._foreach_addcmul(retain, forget, masks)
    else:
        d = torch._foreach_lerp(retain, forget, masks)  # exactly one of them where the mask is 0 or 1
    if accumulate:
        torch._foreach_add_(outs, d)
    else:
        torch._foreach_copy_(outs, d)
    return outs, torch.stack(torch._foreach_norm(outs)).double().square().sum()


def _transform(weights, etas) -> list[Tensor] | None:
    """|w| + eta, 1 where eta is None; None if it is 1 for all."""
    if all(eta is None for eta in etas):
        return None
    scales = torch._foreach_abs(list(weights))
    if any(etas):
        torch._foreach_add_(scales, [float(eta or 0) for eta in etas])
    for scale, eta in zip(scales, etas, strict=True):
        if eta is None:
            scale.fill_(1.0)
    return scales


def _part(grads, masks: Masks, inside: bool | None) -> list[Tensor]:
    if masks is None or inside is None:
        return list(grads)
    if inside:
        return torch._foreach_mul(list(grads), list(masks))
    return torch._foreach_addcmul(list(grads), list(grads), list(masks), value=-1)


def _mix(g0, g1, lam: float) -> list[Tensor] | None:
    if g0 is None or g1 is None:
        return list(g0 or g1) if g0 or g1 else None
    return torch._foreach_lerp(list(g0), list(g1), lam)


def _ascend(g0, g1, lam: float) -> list[Tensor] | None:
    """g0 - lam (g1 - g0)"""
    if g0 is None or g1 is None:
        return None if g0 is None else list(g0)
    found = torch._foreach_mul(list(g0), 1 + lam)
    torch._foreach_add_(found, list(g1), alpha=-lam)
    return found
