"""The definition of every kernel, in plain torch; other backends are tested against it.

    norms     sum over tensors of || T g ||^2             T = 1 (SAM) or |w| + eta (ASAM, elementwise)
    displace  out := w + scale * T^2 g                    scale = rho / || T g ||, one number for all tensors
    perturb   backup := w,  w := w + scale * T^2 g        the same in place
    restore   w := backup                                 a copy, never a subtraction: bit for bit
    compose   out := d, the min-max gradient              see `Direction`
    sgd       one SGD step along a `Direction`            compose and update in one sweep: the masked
    adamw     one AdamW step along a `Direction`          partition update

Shared arguments
    weights, grads, outs, ...  lists of tensors of one dtype and device, equal shapes and strides position by position
    etas                       per tensor: None for T = 1, a number for T = |w| + eta
    masks, inside              None: every element takes part. Else what `pack` made of one bool tensor per weight:
                               elements whose mask equals `inside` take part, the others count as g = 0.

Half-precision tensors are computed on in float32 and rounded once, when stored. Masks select with `where`, never by
multiplication: a NaN on the other side of a mask must not leak through 0 * NaN. Products and sums are separate
operations (no fused multiply-add), so that a kernel can be compared bit by bit. Bad lists raise ValueError (see
`checks`). Call them under `torch.no_grad()`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_compose, check_displace, check_norms, check_update
from .direction import NARROW, SGD, AdamW, Direction

Masks = Sequence[Tensor] | None


def pack(masks: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """Bring boolean masks, one per weight and of its shape, into the form that this backend reads fastest.

    Masks do not change during a run: this is done once. Here: bool, in the memory order of the weight.
    """
    return in_order(masks, weights, torch.bool)


def in_order(masks: Sequence[Tensor], weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    if len(masks) != len(weights):
        raise ValueError(f"masks has {len(masks)} tensors, weights has {len(weights)}: one for each is needed.")
    packed = []
    for i, (mask, weight) in enumerate(zip(masks, weights, strict=True)):
        if mask.dtype != torch.bool:
            raise ValueError(f"masks[{i}] is {mask.dtype}: a mask is torch.bool, True on the forget part.")
        if mask.shape != weight.shape:
            raise ValueError(f"masks[{i}] has shape {tuple(mask.shape)}, weights[{i}] has {tuple(weight.shape)}.")
        packed.append(torch.empty_like(weight, dtype=dtype, requires_grad=False).copy_(mask))
    return packed


def norms(
    weights: Sequence[Tensor],
    gradients: Sequence[Sequence[Tensor]],
    etas: Sequence[float | None],
    masks: Masks = None,
    insides: Sequence[bool | None] | None = None,
) -> Tensor:
    """Return sum ||T g||^2 of each list in `gradients`, at most two: float64, shape (lists,), on the weights' device.

    insides: per list, the part of the masks that takes part, or None for all. MPS has no float64: float32 there.
    """
    insides = [None] * len(gradients) if insides is None else insides
    check_norms(weights, gradients, etas, masks, insides, torch.bool)
    device = weights[0].device if weights else torch.device("cpu")
    total = torch.zeros(len(gradients), dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
    for k, (grads, inside) in enumerate(zip(gradients, insides, strict=True)):
        for i, (weight, grad, eta) in enumerate(zip(weights, grads, etas, strict=True)):
            scaled = _select(_wide(grad), masks, i, inside)
            if eta is not None:
                scaled = (_wide(weight).abs() + eta).mul_(scaled)
            total[k] += _squares(scaled, total.dtype)
    return total


def _squares(values: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    # vector_norm accumulates in float64 without a float64 copy of the tensor.
    return torch.linalg.vector_norm(values, dtype=dtype).square()


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in NARROW else tensor


def _select(grad: Tensor, masks: Masks, index: int, inside: bool | None) -> Tensor:
    if masks is None or inside is None:
        return grad
    zero = grad.new_zeros(())
    return torch.where(masks[index], grad, zero) if inside else torch.where(masks[index], zero, grad)


def displace(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    outs: Sequence[Tensor],
    etas: Sequence[float | None],
    scale: float,
    masks: Masks = None,
    inside: bool | None = True,
) -> None:
    """Write the perturbed weights to `outs`; the weights stay as they are."""
    check_displace(weights, grads, outs, etas, masks, torch.bool)
    for i in range(len(weights)):
        _displace(weights[i], grads[i], outs[i], etas[i], scale, masks, inside, i)


def _displace(weight, grad, out, eta, scale, masks, inside, index) -> None:
    wide, step = _wide(weight), _select(_wide(grad), masks, index, inside)
    if eta is None:
        step = step * scale
    else:
        transform = wide.abs() + eta
        step = transform.mul_(transform).mul_(step).mul_(scale)
    out.copy_(step.add_(wide))


def perturb(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    backups: Sequence[Tensor],
    etas: Sequence[float | None],
    scale: float,
    saved: list[int],
    masks: Masks = None,
    inside: bool | None = True,
) -> None:
    """Back up and perturb in place.

    `saved` receives a tensor's position once its backup is complete and before its weight changes: an interrupted
    sweep leaves exactly the list that `restore` needs, and a stale backup of an earlier step is never put back.
    """
    check_displace(weights, grads, backups, etas, masks, torch.bool)
    for i, (weight, backup) in enumerate(zip(weights, backups, strict=True)):
        backup.copy_(weight)
        saved.append(i)
        _displace(backup, grads[i], weight, etas[i], scale, masks, inside, i)


def restore(weights: Sequence[Tensor], backups: Sequence[Tensor], saved: list[int]) -> None:
    """Put the weights named in `saved` back and empty the list. Safe to call again after an interrupt."""
    while saved:
        index = saved[-1]
        weights[index].copy_(backups[index])
        saved.pop()


def compose(
    direction: Direction, outs: Sequence[Tensor] | None = None, accumulate: bool = False
) -> tuple[list[Tensor], Tensor]:
    """Return the composed gradients d and the sum of their squares, a 0-d float64 tensor.

    outs: where d is written, or added to with `accumulate` (the squares are then those of the sum). Default: over a
        list of the direction, whose tensors may all be overwritten.
    """
    outs = check_compose(direction, outs, accumulate, torch.bool)
    total = torch.zeros((), dtype=torch.float64, device=outs[0].device if outs else None)
    for i, out in enumerate(outs):
        d = _direction(direction, i)
        out.add_(d) if accumulate else out.copy_(d)
        total += _squares(out)
    return list(outs), total


def _direction(direction: Direction, i: int) -> Tensor:
    (r0, r1), (f0, f1) = direction.retain(), direction.forget()
    retain = forget = None
    if r0 is None and r1 is not None:
        retain = _wide(r1[i])
    elif r0 is not None:
        retain = _wide(r0[i]) if r1 is None else _mix(r0[i], r1[i], direction.lam_retain)
    if f0 is not None and f1 is not None:
        sharp = direction.lam_forget == 1
        forget = (_wide(f0[i]) * 2).sub_(_wide(f1[i])) if sharp else _mix(f0[i], f1[i], -direction.lam_forget)
    elif f0 is not None:
        forget = _wide(f0[i])
    if forget is None:
        if direction.masks is None or direction.overlap:
            return retain
        return torch.where(direction.masks[i], retain.new_zeros(()), retain)
    forget_only = retain is None
    retain = forget.new_zeros(()) if forget_only else retain
    if direction.overlap and not forget_only:
        return retain + torch.where(direction.masks[i], forget, forget.new_zeros(()))
    return torch.where(direction.masks[i], forget, retain)


def _mix(g0: Tensor, g1: Tensor, lam: float) -> Tensor:
    g0, g1 = _wide(g0), _wide(g1)
    return (g1 - g0).mul_(lam).add_(g0)


def sgd(
    weights: Sequence[Tensor],
    direction: Direction,
    momenta: Sequence[Tensor] | None,
    rules: Sequence[SGD],
    scale: float = 1.0,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    backups: Sequence[Tensor] | None = None,
    norm: bool = False,
) -> Tensor | None:
    """One SGD step; see `direction.SGD` for the rule. With `norm` returns the sum of squares of d, before `scale`.

    momenta: float32 (the weights' dtype for float64), zeros at a weight's first step; None if every momentum is 0.
    scale: factor of d, e.g. a clipping coefficient; negative to maximise. grad_scale: 0-d tensor that d is divided by
    (a loss scale). found_inf: 0-d tensor; not 0 skips the step. backups: the weights are perturbed, and the true ones
    lie here: they are restored in the same sweep, also when the step is skipped.
    """
    check_update(weights, direction, {"momenta": momenta}, rules, backups, torch.bool)
    total = torch.zeros((), dtype=torch.float64, device=weights[0].device if weights else None)
    for i, (weight, rule) in enumerate(zip(weights, rules, strict=True)):
        d, skip = _scaled(direction, i, total, scale, grad_scale, found_inf)
        x = _wide(weight if backups is None else backups[i])
        if not skip:
            d = d + x * rule.weight_decay if rule.weight_decay else d
            if rule.momentum:
                momenta[i].mul_(rule.momentum).add_(d * (1 - rule.dampening))
                d = d + momenta[i] * rule.momentum if rule.nesterov else momenta[i]
            x = x - d * rule.lr
        weight.copy_(x)
    return total if norm else None


def adamw(
    weights: Sequence[Tensor],
    direction: Direction,
    averages: Sequence[Tensor],
    squares: Sequence[Tensor],
    rules: Sequence[AdamW],
    scale: float = 1.0,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    backups: Sequence[Tensor] | None = None,
    norm: bool = False,
) -> Tensor | None:
    """One AdamW step. Arguments and result as in `sgd`; averages, squares: both moments."""
    check_update(weights, direction, {"averages": averages, "squares": squares}, rules, backups, torch.bool)
    total = torch.zeros((), dtype=torch.float64, device=weights[0].device if weights else None)
    for i, (weight, rule) in enumerate(zip(weights, rules, strict=True)):
        d, skip = _scaled(direction, i, total, scale, grad_scale, found_inf)
        x = _wide(weight if backups is None else backups[i])
        if not skip:
            decay, rest1, beta2, rest2, root, eps, size = rule.factors()
            averages[i].add_((d - averages[i]).mul_(rest1))
            squares[i].mul_(beta2).add_((d * rest2).mul_(d))
            denominator = squares[i].sqrt().mul_(root).add_(eps)
            x = x * decay - (averages[i] * size).div_(denominator)
        weight.copy_(x)
    return total if norm else None


def _scaled(direction, i, total, scale, grad_scale, found_inf) -> tuple[Tensor, bool]:
    d = _direction(direction, i)
    total += _squares(d)
    if grad_scale is not None:
        scale = scale / grad_scale.item()
    d = d * scale if scale != 1 else d
    return d, found_inf is not None and bool(found_inf != 0)
