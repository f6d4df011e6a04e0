"""The backend "triton": a sweep is one launch, or two where some tensors cannot be walked 16 bytes at a time, for any
number of tensors (see `table`). Functions and results are those of `reference`: perturb, displace, restore, compose and
SGD bit for bit (up to the sign of a zero), AdamW with correctly rounded square roots, sums of squares in float64.

Everything is asynchronous: nothing here waits for the device. Capture in a CUDA graph is not supported: addresses are
uploaded when they change.
"""

from collections.abc import Sequence

import torch
import triton.language as tl
from torch import Tensor

from . import triton_kernels as device_code
from .checks import check_compose, check_direction, check_displace, check_lists, check_norms, check_update
from .direction import SGD, AdamW, Direction
from .launch import CHUNK, INTERPRETED, finish, launch, partials_of
from .meter import count
from .reference import Masks, pack
from .table import numbers, table_of

__all__ = ["INTERPRETED", "adamw", "compose", "displace", "norms", "pack", "perturb", "restore", "sgd"]

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}
INTEGERS = {1: tl.int8, 2: tl.int16, 4: tl.int32, 8: tl.int64}


def _dtype_of(first: str, tensors: Sequence[Tensor]) -> tl.dtype:
    for i, tensor in enumerate(tensors[:1]):
        if tensor.dtype not in DTYPES:
            raise ValueError(
                f"{first}[{i}] is {tensor.dtype}: 'triton' computes on float32 and bfloat16. Use 'reference'."
            )
    return DTYPES[tensors[0].dtype]


def _etas(etas: Sequence[float | None], device: torch.device) -> tuple[dict, bool]:
    """Per-tensor offsets (-1: T = 1) and whether any is in force."""
    adapt = any(eta is not None for eta in etas)
    return {"etas": numbers("etas", [-1.0 if eta is None else float(eta) for eta in etas], device)}, adapt


def _inside(masks: Masks, inside: bool | None) -> int:
    return 0 if masks is None or inside is None else 1 if inside else 2


def norms(
    weights: Sequence[Tensor],
    gradients: Sequence[Sequence[Tensor]],
    etas: Sequence[float | None],
    masks: Masks = None,
    insides: Sequence[bool | None] | None = None,
) -> Tensor:
    """See `reference.norms`."""
    insides = [None] * len(gradients) if insides is None else insides

    def check() -> None:
        check_norms(weights, gradients, etas, masks, insides, torch.bool, dense=True)

    if not weights or len(etas) != len(weights) or not 1 <= len(gradients) == len(insides) <= 2:
        check()
        return torch.zeros(len(gradients), dtype=torch.float64)
    dtype, lists = _dtype_of("weights", weights), len(gradients)
    arguments, adapt = _etas(etas, weights[0].device)
    flags = [_inside(masks, inside) for inside in insides] + [0]
    masks = masks if any(flags) else None
    table = table_of([weights, gradients[0], gradients[1] if lists == 2 else None, masks], CHUNK, check)
    partials = partials_of(table, lists)
    launch(
        device_code.norms,
        table,
        arguments | {"partials": partials, "total": table.total},
        lambda chunks: {"first": chunks.first},
        DT=dtype,
        LISTS=lists,
        ADAPT=adapt,
        INSIDE_0=flags[0],
        INSIDE_1=flags[1],
    )
    count("norms", len(table.chunks), weights if adapt else None, *gradients, masks)
    return _finish(partials, lists)


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

    def check() -> None:
        check_displace(weights, grads, outs, etas, masks, torch.bool, dense=True)

    if not weights or len(etas) != len(weights):
        return check()
    dtype = _dtype_of("weights", weights)
    arguments, adapt = _etas(etas, weights[0].device)
    part = _inside(masks, inside)
    masks = masks if part else None
    table = table_of([weights, grads, outs, masks], CHUNK, check, written=(0, 2))
    arguments["scale"] = float(scale)
    launch(device_code.displace, table, arguments, DT=dtype, ADAPT=adapt, INSIDE=part)
    count("displace", len(table.chunks), weights, grads, outs, masks)


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
    """See `reference.perturb`. The backup is a sweep of its own: only when it is complete may any weight change, so
    that `saved` is true at every moment, whatever interrupts the host."""
    check_displace(weights, grads, backups, etas, masks, torch.bool, dense=True)
    _copy("backup", weights, backups)
    saved.extend(range(len(weights)))
    displace(backups, grads, weights, etas, scale, masks, inside)


def restore(weights: Sequence[Tensor], backups: Sequence[Tensor], saved: list[int]) -> None:
    """See `reference.restore`."""
    if saved:
        _copy("restore", [backups[i] for i in saved], [weights[i] for i in saved])
        saved.clear()


def _copy(operation: str, sources: Sequence[Tensor], outs: Sequence[Tensor]) -> None:
    if sources:
        table = table_of(
            [sources, outs], CHUNK, lambda: check_lists("weights", {"weights": sources, "backups": outs}, dense=True)
        )
        launch(device_code.copy, table, {}, DT=INTEGERS[sources[0].element_size()])
        count(operation, len(table.chunks), sources, outs)


def _roles(direction: Direction) -> tuple[list, dict, dict]:
    """Rows r0, r1, f0, f1, mask; the flags and the scalars that belong to them."""
    read = check_direction(direction)
    rows = [read.get(name) for name in ("r0", "r1", "f0", "f1")]
    flags = {name.upper(): name in read for name in ("r0", "r1", "f0", "f1")}
    flags |= {"MASK": direction.masks is not None, "SHARP": direction.lam_forget == 1, "OVERLAP": direction.overlap}
    scalars = {"lam_r": float(direction.lam_retain), "lam_f": float(direction.lam_forget)}
    return [*rows, direction.masks], flags, scalars


def compose(
    direction: Direction, outs: Sequence[Tensor] | None = None, accumulate: bool = False
) -> tuple[list[Tensor], Tensor]:
    """See `reference.compose`."""

    def check() -> Sequence[Tensor]:
        return check_compose(direction, outs, accumulate, torch.bool, dense=True)

    written = outs
    if not outs or not direction.lists():
        written = check()
        if not written:
            return [], torch.zeros((), dtype=torch.float64)
    dtype = _dtype_of("outs", written)
    rows, flags, scalars = _roles(direction)
    table = table_of([written, *rows], CHUNK, check, written=(0,))
    partials = partials_of(table)
    launch(
        device_code.compose,
        table,
        scalars | {"partials": partials},
        lambda chunks: {"first": chunks.first},
        DT=dtype,
        ADD=accumulate,
        **flags,
    )
    count("compose", len(table.chunks), written, written if accumulate else None, *rows)
    return list(written), _finish(partials)[0]


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

    def check() -> None:
        check_update(weights, direction, {"momenta": momenta}, rules, backups, torch.bool, dense=True)

    kinds = _distinct(rules)
    moving = [bool(rule.momentum) for rule in kinds]
    if any(moving) and (momenta is None or not all(moving)):
        check()
    numbers_of = {
        id(r): (r.lr, r.momentum, 1 - r.dampening, r.weight_decay, float(r.nesterov), 0.0, 0.0, 0.0) for r in kinds
    }
    flat = [numbers_of[id(rule)] for rule in rules]
    flags = {
        "ADAM": False,
        "NORM": norm,
        "MOMENTUM": any(moving),
        "DECAY": any(r.weight_decay for r in kinds),
    }
    states = [momenta if flags["MOMENTUM"] else None, None]
    return _update("sgd", weights, direction, states, flat, flags, scale, grad_scale, found_inf, backups, check)


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
    states = {"averages": averages, "squares": squares}

    def check() -> None:
        check_update(weights, direction, states, rules, backups, torch.bool, dense=True)

    factors = {id(rule): (*rule.factors(), 0.0) for rule in _distinct(rules)}
    flat = [factors[id(rule)] for rule in rules]
    flags = {"ADAM": True, "NORM": norm, "MOMENTUM": False, "DECAY": False}
    rows = list(states.values())
    return _update("adamw", weights, direction, rows, flat, flags, scale, grad_scale, found_inf, backups, check)


def _distinct(rules: Sequence[SGD] | Sequence[AdamW]) -> list:
    """Each object once: most weights share a rule."""
    return list({id(rule): rule for rule in rules}.values())


def _update(
    name, weights, direction, states, rules, flags, scale, grad_scale, found_inf, backups, check
) -> Tensor | None:
    if not weights or len(rules) != len(weights) or not direction.lists():
        check()
        return torch.zeros((), dtype=torch.float64) if flags["NORM"] else None
    device, dtype = weights[0].device, _dtype_of("weights", weights)
    rows, kinds, scalars = _roles(direction)
    sources = weights if backups is None else backups
    table = table_of([weights, sources, *rows, *states], CHUNK, check, written=(0, 7, 8))
    partials = partials_of(table)
    one = partials if grad_scale is None or found_inf is None else None  # some pointer where none is read
    pointers = {
        "rules": numbers("rules", rules, device),
        "grad_scale": one if grad_scale is None else grad_scale.to(device, torch.float32),
        "found_inf": one if found_inf is None else found_inf.to(device, torch.float32),
    }
    launch(
        device_code.update,
        table,
        scalars | pointers | {"partials": partials, "factor": float(scale)},
        lambda chunks: {"first": chunks.first},
        DT=dtype,
        ST=tl.float32,
        SCALED=grad_scale is not None,
        SKIPS=found_inf is not None,
        **flags,
        **kinds,
    )
    count(name, len(table.chunks), weights, weights, *rows, *states, *states)
    return _finish(partials)[0] if flags["NORM"] else None


def _finish(partials: Tensor, lists: int = 1) -> Tensor:
    sums, launches = finish(partials, lists)
    count("finish", launches)
    return sums
