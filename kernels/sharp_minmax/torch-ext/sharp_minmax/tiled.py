"""The kernels for a CPU: `reference`, a cache-sized tile at a time, in scratch memory, with masks as machine words.

Results are those of `reference`, bit for bit (up to the sign of a zero); sums of squares up to the order of summation.
A mask is packed as words, all bits set inside the part and none outside, so that a select is a bitwise AND: exact,
indifferent to NaN, and several times faster than `torch.where` on a CPU.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .checks import check_compose, check_displace, check_norms, check_update, is_dense
from .direction import NARROW, SGD, AdamW, Direction
from .meter import count
from .reference import Masks, in_order, restore

__all__ = ["adamw", "compose", "displace", "norms", "pack", "perturb", "restore", "sgd"]

TILE = 1 << 18  # elements: 1 MiB of fp32; larger ones leave the cache, smaller ones pay for the loop
SAFE_SQUARES = (1e-24, 1e36)  # sums of fp32 squares outside this range may have lost terms to under- or overflow


def _word(weights: Sequence[Tensor]) -> torch.dtype:
    return torch.int64 if weights and weights[0].dtype == torch.float64 else torch.int32


def pack(masks: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    """See `reference.pack`: words of all ones where the mask is True, of zeros elsewhere."""
    return [words.neg_() for words in in_order(masks, weights, _word(weights))]


class _Scratch:
    """Tile-sized buffers, made once a call."""

    def __init__(self):
        self._buffers: dict[tuple[int, torch.dtype], Tensor] = {}

    def like(self, tile: Tensor, number: int) -> Tensor:
        """Memory of the tile's size, in the dtype that it is computed on in."""
        dtype = torch.float32 if tile.dtype in NARROW else tile.dtype
        if tile.ndim != 1 or tile.numel() > TILE:
            return torch.empty_like(tile, dtype=dtype)
        key = number, dtype
        if key not in self._buffers:
            self._buffers[key] = torch.empty(TILE, dtype=dtype, device=tile.device)
        return self._buffers[key][: tile.numel()]

    def wide(self, tile: Tensor, number: int) -> Tensor:
        return self.like(tile, number).copy_(tile) if tile.dtype in NARROW else tile


def _tiles(*tensors: Tensor | None) -> Iterator[list[Tensor | None]]:
    """The same slice of each tensor, in the order of memory. A tensor with gaps is one tile."""
    first = next(tensor for tensor in tensors if tensor is not None)
    size = first.numel()
    if not is_dense(first):
        yield list(tensors)
        return
    flat = [None if tensor is None else tensor.as_strided((size,), (1,)) for tensor in tensors]
    if size <= TILE:
        yield flat
        return
    for low in range(0, size, TILE):
        yield [None if tensor is None else tensor[low : low + TILE] for tensor in flat]


def _at(lists: Sequence[Tensor] | None, index: int) -> Tensor | None:
    return None if lists is None else lists[index]


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
    scratch, total = _Scratch(), [0.0] * len(gradients)
    for i, (weight, eta) in enumerate(zip(weights, etas, strict=True)):
        for w, m, *tiles in _tiles(weight, _at(masks, i), *(grads[i] for grads in gradients)):
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
    scratch = _Scratch()
    for i in range(len(weights)):
        _displace(weights[i], grads[i], outs[i], etas[i], scale, _at(masks, i), inside, scratch)
    count("displace", 0, weights, grads, outs, masks)


def _displace(weight, grad, out, eta, scale, mask, inside, scratch) -> None:
    for w, g, o, m in _tiles(weight, grad, out, mask):
        wide, product = scratch.wide(w, 2), scratch.like(w, 1)
        step = _select(scratch.wide(g, 3), m, inside, scratch.like(g, 0))
        if eta is None:
            torch.mul(step, scale, out=product)
        else:
            if eta:
                torch.abs(wide, out=product).add_(eta)
                product.mul_(product)
            else:
                torch.mul(wide, wide, out=product)
            product.mul_(step).mul_(scale)
        o.copy_(product.add_(wide)) if o.dtype in NARROW else torch.add(product, wide, out=o)


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
    scratch = _Scratch()
    for i, (weight, backup) in enumerate(zip(weights, backups, strict=True)):
        backup.copy_(weight)
        saved.append(i)
        _displace(backup, grads[i], weight, etas[i], scale, _at(masks, i), inside, scratch)
    count("perturb", 0, weights, backups, backups, grads, weights, masks)


def compose(
    direction: Direction, outs: Sequence[Tensor] | None = None, accumulate: bool = False
) -> tuple[list[Tensor], Tensor]:
    """See `reference.compose`."""
    outs = check_compose(direction, outs, accumulate, _word(outs or next(iter(direction.lists().values()), ())))
    read, scratch, total = direction.lists(), _Scratch(), 0.0
    for i, out in enumerate(outs):
        for o, m, *halves in _tiles(out, _at(direction.masks, i), *(values[i] for values in read.values())):
            d = _direction(dict(zip(read, halves, strict=True)), m, direction, scratch)
            if accumulate:
                o.add_(d)
            elif d is not o:
                o.copy_(d)
            total += _sum_of_squares(scratch.wide(o, 0))
    count("compose", 0, outs, outs if accumulate else None, *read.values(), direction.masks)
    return list(outs), torch.tensor(total, dtype=torch.float64)


def _direction(tiles: dict[str, Tensor], m: Tensor | None, direction: Direction, scratch: _Scratch) -> Tensor:
    """One tile of d: a gradient itself where it is one, else scratch memory (numbers 0 to 3)."""
    retain = _mix(tiles, "r", direction.lam_retain, scratch, 0)
    forget = _mix(tiles, "f", -direction.lam_forget, scratch, 2)
    if forget is None:
        return retain if m is None or direction.overlap else _select(retain, m, False, scratch.like(retain, 3))
    if retain is None:
        return _select(forget, m, True, scratch.like(forget, 3))
    chosen = scratch.like(forget, 3)
    if direction.overlap:
        return torch.add(retain, _select(forget, m, True, chosen), out=scratch.like(forget, 1))
    bits = chosen.view(m.dtype)  # r ^ ((r ^ f) & m): f inside, r outside
    torch.bitwise_xor(retain.view(m.dtype), forget.view(m.dtype), out=bits).bitwise_and_(m)
    torch.bitwise_xor(retain.view(m.dtype), bits, out=bits)
    return chosen


def _mix(tiles: dict[str, Tensor], half: str, lam: float, scratch: _Scratch, number: int) -> Tensor | None:
    """g0 + lam (g1 - g0), rounded as `reference` rounds it: the lists of a lam of 0 or 1 are not in `tiles`."""
    g0, g1 = tiles.get(f"{half}0"), tiles.get(f"{half}1")
    if g0 is None or g1 is None:
        alone = g1 if g0 is None else g0
        return None if alone is None else scratch.wide(alone, number)
    a, b, out = scratch.wide(g0, number), scratch.wide(g1, number + 1), scratch.like(g0, number + 1)
    if lam == -1.0:
        return torch.sub(torch.mul(a, 2, out=scratch.like(g0, number)), b, out=out)
    return torch.sub(b, a, out=out).mul_(lam).add_(a)


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

    def update(i, x, d, v, scratch):
        rule = rules[i]
        if rule.weight_decay:
            d = torch.mul(x, rule.weight_decay, out=scratch.like(x, 4)).add_(d)
        if rule.momentum:
            v.mul_(rule.momentum)
            v.add_(torch.mul(d, 1 - rule.dampening, out=scratch.like(x, 5)) if rule.dampening else d)
            d = torch.mul(v, rule.momentum, out=scratch.like(x, 5)).add_(d) if rule.nesterov else v
        return x, torch.mul(d, rule.lr, out=scratch.like(x, 5))

    return _sweep("sgd", weights, direction, [momenta], update, scale, grad_scale, found_inf, backups, norm)


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
    factors = [rule.factors() for rule in rules]

    def update(i, x, d, average, square, scratch):
        decay, rest1, beta2, rest2, root, eps, size = factors[i]
        a, b = scratch.like(x, 4), scratch.like(x, 5)
        average.add_(torch.sub(d, average, out=a).mul_(rest1))
        square.mul_(beta2).add_(torch.mul(d, d, out=a).mul_(rest2))
        torch.sqrt(square, out=a).mul_(root).add_(eps)
        torch.mul(average, size, out=b).div_(a)
        return torch.mul(x, decay, out=a), b

    return _sweep("adamw", weights, direction, [averages, squares], update, scale, grad_scale, found_inf, backups, norm)


def _sweep(name, weights, direction, states, update, scale, grad_scale, found_inf, backups, norm) -> Tensor | None:
    """Compose each tile of d; `update(index, x, d, *states, scratch)` returns two tiles: new w is their difference."""
    skip = found_inf is not None and bool(found_inf != 0)
    scale = scale if grad_scale is None else scale / grad_scale.item()
    read, scratch, total = direction.lists(), _Scratch(), 0.0
    for i, weight in enumerate(weights):
        lists = [weight, _at(backups, i), _at(direction.masks, i), *(_at(s, i) for s in states)]
        for w, x, m, *tiles in _tiles(*lists, *(values[i] for values in read.values())):
            halves = dict(zip(read, tiles[len(states) :], strict=True))
            d = _direction(halves, m, direction, scratch)
            total += _sum_of_squares(d) if norm else 0.0
            if skip:
                w.copy_(w if x is None else x)
                continue
            d = d if scale == 1 else torch.mul(d, scale, out=scratch.like(w, 0))
            a, b = update(i, scratch.wide(w if x is None else x, 6), d, *tiles[: len(states)], scratch)
            w.copy_(torch.sub(a, b, out=b)) if w.dtype in NARROW else torch.sub(a, b, out=w)
    count(name, 0, weights, weights, direction.masks, *read.values(), *states, *states)
    return torch.tensor(total, dtype=torch.float64) if norm else None
