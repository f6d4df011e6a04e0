"""The definition of every kernel, in plain torch; other backends are tested against it.

    norm      sum over tensors of || T g ||^2             T = 1 (SAM) or |w| + eta (ASAM, elementwise)
    perturb   backup := w,  w := w + scale * T^2 g        scale = rho / || T g ||, one number for all tensors
    restore   w := backup                                 a copy, never a subtraction: bit for bit
    compose   d := where(mask, f, r)                      overlap: d := r + (f where mask, else 0)
              r = r0 + lam_retain * (r1 - r0)             lam 0: r0, lam 1: r1
              f = f0 - lam_forget * (f1 - f0)             lam 0: f0, lam 1: 2 f0 - f1

Shared arguments
    weights, grads, backups   lists of dense tensors, equal shapes position by position; any float dtype
    etas                      per tensor: None for T = 1, a number for T = |w| + eta
    masks, inside             None: every element takes part. Else what `pack` made of one bool tensor per weight:
                              elements whose mask equals `inside` take part, the others count as g = 0.

Masks select with `where`, never by multiplication: a NaN on the other side of a mask must not leak through 0 * NaN.
Products and sums are separate operations (no fused multiply-add), so that a kernel can be compared bit by bit.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Masks = Sequence[Tensor] | None


def pack(masks: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """Bring boolean masks, one per weight and of its shape, into the form that this backend reads fastest.

    Masks do not change during a run: this is done once. Here they stay what they are.
    """
    return list(masks)


def _select(grad: Tensor, masks: Masks, index: int, inside: bool) -> Tensor:
    if masks is None:
        return grad
    zero = grad.new_zeros(())
    return torch.where(masks[index], grad, zero) if inside else torch.where(masks[index], zero, grad)


def norm(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    etas: Sequence[float | None],
    masks: Masks = None,
    inside: bool = True,
) -> Tensor:
    """Return sum ||T g||^2 over all tensors: a 0-d float64 tensor on the first tensor's device (0 for empty lists).

    MPS has no float64: there everything is float32.
    """
    device = grads[0].device if grads else torch.device("cpu")
    wide = torch.float32 if device.type == "mps" else torch.float64
    total = torch.zeros((), dtype=wide, device=device)
    for index, (weight, grad, eta) in enumerate(zip(weights, grads, etas, strict=True)):
        scaled = _select(grad, masks, index, inside)
        if eta is not None:
            scaled = (weight.abs() + eta).mul_(scaled)
        # vector_norm accumulates in float64 without a float64 copy of the tensor.
        total += torch.linalg.vector_norm(scaled, dtype=wide).square().to(total.device)
    return total


def perturb(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    backups: Sequence[Tensor],
    etas: Sequence[float | None],
    scale: float,
    saved: list[int],
    masks: Masks = None,
    inside: bool = True,
) -> None:
    """Back up and perturb in place.

    `saved` receives a tensor's position once its backup is complete and before its weight changes: an interrupted
    sweep leaves exactly the list that `restore` needs, and a stale backup of an earlier step is never put back.
    """
    for index, (weight, grad, backup, eta) in enumerate(zip(weights, grads, backups, etas, strict=True)):
        backup.copy_(weight)
        saved.append(index)
        step = _select(grad, masks, index, inside)
        if eta is None:
            step = step * scale
        else:
            transform = weight.abs() + eta
            step = transform.mul_(transform).mul_(step).mul_(scale)
        weight.add_(step)


def restore(weights: Sequence[Tensor], backups: Sequence[Tensor], saved: list[int]) -> None:
    """Put the weights named in `saved` back and empty the list. Safe to call again after an interrupt."""
    while saved:
        index = saved[-1]
        weights[index].copy_(backups[index])
        saved.pop()


def compose(
    r0: Sequence[Tensor] | None,
    r1: Sequence[Tensor] | None,
    f0: Sequence[Tensor] | None,
    f1: Sequence[Tensor] | None,
    masks: Sequence[Tensor],
    lam_retain: float = 1.0,
    lam_forget: float = 1.0,
    overlap: bool = False,
) -> list[Tensor]:
    """Return the composed gradients. A half whose lists are all None counts as zero.

    r0 may be None when lam_retain is 1, r1 and f1 when their lam is 0. The tensors handed in may be overwritten.
    """
    composed = []
    for index, mask in enumerate(masks):
        retain = _descend(r0, r1, lam_retain, index)
        forget = _ascend(f0, f1, lam_forget, index)
        zero = (retain if retain is not None else forget).new_zeros(())
        retain = zero if retain is None else retain
        forget = zero if forget is None else forget
        composed.append(retain + torch.where(mask, forget, zero) if overlap else torch.where(mask, forget, retain))
    return composed


def _descend(g0, g1, lam: float, index: int) -> Tensor | None:
    """Sharpness minimisation g0 + lam (g1 - g0)."""
    if lam == 1.0 and g1 is not None:
        return g1[index]
    if lam == 0.0 or g1 is None:
        return None if g0 is None else g0[index]
    return g0[index] + (g1[index] - g0[index]) * lam


def _ascend(g0, g1, lam: float, index: int) -> Tensor | None:
    """Sharpness maximisation g0 - lam (g1 - g0)."""
    if lam == 0.0 or g1 is None:
        return None if g0 is None else g0[index]
    if lam == 1.0:
        return (g0[index] * 2).sub_(g1[index])
    return g0[index] - (g1[index] - g0[index]) * lam
