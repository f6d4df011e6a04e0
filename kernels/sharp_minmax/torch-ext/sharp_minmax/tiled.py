"""The kernels for a CPU: `reference`, a cache-sized tile at a time, in scratch memory, with masks as machine words.

Results are those of `reference`, bit for bit (up to the sign of a zero); sums of squares up to the order of summation.
A mask is packed as words, all bits set inside the part and none outside, so that a select is a bitwise AND: exact,
indifferent to NaN, and several times faster than `torch.where` on a CPU. a + x * b is one pass, `addcmul` with a factor
of 1: unlike `add(alpha=)` it rounds the product first, as `reference` does.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_compose, check_displace, check_norms, check_update
from .direction import NARROW, SGD, AdamW, Direction
from .meter import count
from .reference import Masks, in_order, restore
from .tiles import SCRATCH, Scratch, tiles_of, walk

__all__ = ["adamw", "compose", "displace", "norms", "pack", "perturb", "restore", "sgd"]

SAFE_SQUARES = (1e-24, 1e36)  # sums of fp32 squares outside this range may have lost terms to under- or overflow


def _word(weights: Sequence[Tensor]) -> torch.dtype:
    return torch.int64 if weights and weights[0].dtype == torch.float64 else torch.int32


def pack(masks: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """See `reference.pack`: words of all ones where the mask is True, of zeros elsewhere."""
    return [words.neg_() for words in in_order(masks, weights, _word(weights))]


def _select(value: Tensor, mask: Tensor | None, inside: bool | None, out: Tensor) -> Tensor:
    """`value` where the mask equals `inside`, zero elsewhere, in `out` (other memory); `value` if there is no mask."""
    if mask is None or inside is None:
        return value
    bits, result = value.view(mask.dtype), out.view(mask.dtype)
    torch.bitwise_and(bits, mask, out=result)
    if not inside:
        torch.bitwise_xor(bits, result, out=result)  # x ^ (x & m) = x & ~m
    return out


def norms(
    weights: Sequence[Tensor],
    gradients: Sequence[Sequence[Tensor]],
    etas: Sequence[float | None],
    masks: Masks = None,
    insides: Sequence[bool | None] | None = None,
) -> Tensor:
    """See `reference.norms`."""
    insides = [None] * len(gradients) if insides is None else insides
    check_norms(weights, gradients, etas, masks, insides, _word(weights))
    masks = None if all(inside is None for inside in insides) else masks
    scratch, total = SCRATCH, [0.0] * len(gradients)
    for indices, tensors in walk(etas, [weights, masks, *gradients]):
        eta = etas[indices[0]]
        for w, m, *tiles in tiles_of(*tensors):
            transform = None
            if eta is not None:
                transform = torch.abs(scratch.wide(w, 1), out=scratch.like(w, 1))
                transform = transform.add_(eta) if eta else transform
            for k, (g, inside) in enumerate(zip(tiles, insides, strict=True)):
                scaled = _select(scratch.wide(g, 2), m, inside, scratch.like(g, 0))
                scaled = scaled if transform is None else torch.mul(transform, scaled, out=scratch.like(g, 0))
                total[k] += _sum_of_squares(scaled)
    count("norms", 0, weights if any(e is not None for e in etas) else None, *gradients, masks)
    return torch.tensor(total, dtype=torch.float64)


def _sum_of_squares(values: Tensor) -> float:
    if values.dtype == torch.float32 and values.ndim == 1:
        squares = torch.dot(values, values).item()
        if SAFE_SQUARES[0] < squares < SAFE_SQUARES[1]:
            return squares
    return torch.linalg.vector_norm(values, dtype=torch.float64).square().item()


def displace(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    outs: Sequence[Tensor],
    etas: Sequence[float | None],
    scale: float,
    masks: Masks = None,
    inside: bool | None = True,
) -> None:
    """See `reference.displace`."""
    check_displace(weights, grads, outs, etas, masks, _word(weights))
    scratch = SCRATCH
    for indices, (w, g, out, m) in walk(etas, [weights, grads, outs, masks], written=[2]):
        _displace(w, g, out, etas[indices[0]], scale, m, inside, scratch)
    count("displace", 0, weights, grads, outs, masks)


def _displace(weight, grad, out, eta, scale, mask, inside, scratch) -> None:
    for w, g, o, m in tiles_of(weight, grad, out, mask):
        wide, product = scratch.wide(w, 2), scratch.like(w, 1)
        step = _select(scratch.wide(g, 3), m, inside, scratch.like(g, 0))
        if eta is not None:
            if eta:
                torch.abs(wide, out=product).add_(eta)
                product.mul_(product)
            else:
                torch.mul(wide, wide, out=product)
            step = product.mul_(step)
        moved = torch.addcmul(wide, step, scratch.one(step), value=scale, out=product if o.dtype in NARROW else o)
        if moved is not o:
            o.copy_(moved)


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
    """See `reference.perturb`."""
    check_displace(weights, grads, backups, etas, masks, _word(weights))
    scratch = SCRATCH
    for indices, (w, g, m) in walk(etas, [weights, grads, masks], written=[0]):
        torch._foreach_copy_([backups[i] for i in indices], [weights[i] for i in indices])
        saved.extend(indices)
        _displace(w, g, w, etas[indices[0]], scale, m, inside, scratch)
    count("perturb", 0, weights, backups, backups, grads, weights, masks)


def compose(
    direction: Direction, outs: Sequence[Tensor] | None = None, accumulate: bool = False
) -> tuple[list[Tensor], Tensor]:
    """See `reference.compose`."""
    outs = check_compose(direction, outs, accumulate, _word(outs or next(iter(direction.lists().values()), ())))
    read, scratch, total = direction.lists(), SCRATCH, 0.0
    for _, tensors in walk([None] * len(outs), [outs, direction.masks, *read.values()], written=[0]):
        for o, m, *halves in tiles_of(*tensors):
            into = None if accumulate or o.dtype in NARROW else o
            d = _direction(dict(zip(read, halves, strict=True)), m, direction, scratch, into)
            if accumulate:
                o.add_(d)
            elif d is not o:
                o.copy_(d)
            total += _sum_of_squares(scratch.wide(o, 0))
    count("compose", 0, outs, outs if accumulate else None, *read.values(), direction.masks)
    return list(outs), torch.tensor(total, dtype=torch.float64)


def _direction(
    tiles: dict[str, Tensor], m: Tensor | None, direction: Direction, scratch: Scratch, into: Tensor | None = None
) -> Tensor:
    """One tile of d: a gradient itself where it is one, else in `into`, else in scratch memory (numbers 0 to 3)."""
    retain = _mix(tiles, "r", direction.lam_retain, scratch, 0)
    forget = _mix(tiles, "f", -direction.lam_forget, scratch, 2)
    if forget is None:
        return retain if m is None or direction.overlap else _select(retain, m, False, scratch.like(retain, 3))
    if retain is None:
        return _select(forget, m, True, scratch.like(forget, 3))
    chosen = scratch.like(forget, 3)
    into = chosen if into is None else into
    if direction.overlap:
        return torch.add(retain, _select(forget, m, True, chosen), out=into)
    bits = chosen.view(m.dtype)  # r ^ ((r ^ f) & m): f inside, r outside
    torch.bitwise_xor(retain.view(m.dtype), forget.view(m.dtype), out=bits).bitwise_and_(m)
    torch.bitwise_xor(retain.view(m.dtype), bits, out=into.view(m.dtype))
    return into


def _mix(tiles: dict[str, Tensor], half: str, lam: float, scratch: Scratch, number: int) -> Tensor | None:
    """g0 + lam (g1 - g0), rounded as `reference` rounds it: the lists of a lam of 0 or 1 are not in `tiles`."""
    g0, g1 = tiles.get(f"{half}0"), tiles.get(f"{half}1")
    if g0 is None or g1 is None:
        alone = g1 if g0 is None else g0
        return None if alone is None else scratch.wide(alone, number)
    a, b, out = scratch.wide(g0, number), scratch.wide(g1, number + 1), scratch.like(g0, number + 1)
    if lam == -1.0:
        return torch.sub(torch.mul(a, 2, out=scratch.like(g0, number)), b, out=out)
    return torch.addcmul(a, torch.sub(b, a, out=out), scratch.one(a), value=lam, out=out)


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
    """See `reference.sgd`."""
    check_update(weights, direction, {"momenta": momenta}, rules, backups, _word(weights))

    def update(rule, x, d, v, out, scratch):
        one = scratch.one(x)
        if rule.weight_decay:
            d = torch.addcmul(d, x, one, value=rule.weight_decay, out=scratch.like(x, 4))
        if rule.momentum:
            share = torch.mul(d, 1 - rule.dampening, out=scratch.like(x, 5)) if rule.dampening else d
            torch.addcmul(share, v, one, value=rule.momentum, out=v)
            d = torch.addcmul(d, v, one, value=rule.momentum, out=scratch.like(x, 5)) if rule.nesterov else v
        return torch.addcmul(x, d, one, value=-rule.lr, out=out)

    return _sweep("sgd", weights, direction, [momenta], rules, update, scale, grad_scale, found_inf, backups, norm)


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
    """See `reference.adamw`."""
    check_update(weights, direction, {"averages": averages, "squares": squares}, rules, backups, _word(weights))

    def update(rule, x, d, average, square, out, scratch):
        decay, rest1, beta2, rest2, root, eps, size = rule.factors()
        a = scratch.like(x, 4)
        average.addcmul_(torch.sub(d, average, out=a), scratch.one(x), value=rest1)
        square.mul_(beta2).addcmul_(d, d, value=rest2)
        torch.sqrt(square, out=a).mul_(root).add_(eps)
        return torch.mul(x, decay, out=out).addcdiv_(average, a, value=-size)

    return _sweep(
        "adamw", weights, direction, [averages, squares], rules, update, scale, grad_scale, found_inf, backups, norm
    )


def _sweep(
    name, weights, direction, states, rules, update, scale, grad_scale, found_inf, backups, norm
) -> Tensor | None:
    """Compose each tile of d; `update(rule, x, d, *states, out, scratch)` writes the new weights to `out`."""
    skip = found_inf is not None and bool(found_inf != 0)
    scale = scale if grad_scale is None else scale / grad_scale.item()
    read, scratch, total = direction.lists(), SCRATCH, 0.0
    lists = [weights, backups, direction.masks, *states, *read.values()]
    written = [0, *(3 + k for k, state in enumerate(states) if state is not None)]
    for indices, tensors in walk(rules, lists, written):
        for w, x, m, *tiles in tiles_of(*tensors):
            halves = dict(zip(read, tiles[len(states) :], strict=True))
            d = _direction(halves, m, direction, scratch)
            total += _sum_of_squares(d) if norm else 0.0
            if skip:
                w.copy_(w if x is None else x)
                continue
            d = d if scale == 1 else torch.mul(d, scale, out=scratch.like(w, 0))
            x = scratch.wide(w if x is None else x, 6)
            new = update(
                rules[indices[0]], x, d, *tiles[: len(states)], scratch.like(w, 7) if w.dtype in NARROW else w, scratch
            )
            if new is not w:
                w.copy_(new)
    count(name, 0, weights, weights, direction.masks, *read.values(), *states, *states)
    return torch.tensor(total, dtype=torch.float64) if norm else None
