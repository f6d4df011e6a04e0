"""Bad lists are refused before anything is written: one ValueError that names the list, the index and the remedy."""

from collections.abc import Mapping, Sequence
from operator import attrgetter

import torch
from torch import Tensor

from .direction import NARROW, Direction

_shape, _dtype, _device = attrgetter("shape"), attrgetter("dtype"), attrgetter("device")


def check_lists(
    first: str,
    lists: Mapping[str, Sequence[Tensor] | None],
    dtypes: Mapping[str, torch.dtype] | None = None,
    dense: bool = False,
) -> None:
    """Every list must have the length, and tensor by tensor the shape, strides, dtype and device, of `lists[first]`.

    dtypes: lists whose dtype is another one than the first list's. dense: memory without gaps or overlaps is required.
    """
    base = list(lists[first])
    if not base:
        odd = [name for name, values in lists.items() if values]
        if odd:
            raise ValueError(f"{odd[0]} has {len(lists[odd[0]])} tensors, {first} has none: one for each is needed.")
        return
    dtype, device = base[0].dtype, base[0].device
    shapes, strides = list(map(_shape, base)), list(map(Tensor.stride, base))
    for name, values in lists.items():
        if values is None:
            continue
        if len(values) != len(base):
            raise ValueError(
                f"{name} has {len(values)} tensors, {first} has {len(base)}: one for each is needed, in the same order."
            )
        wanted = (dtypes or {}).get(name, dtype)
        _same(name, "dtype", list(map(_dtype, values)), wanted, f"{first}[0]" if wanted == dtype else "this list")
        _same(name, "device", list(map(_device, values)), device, f"{first}[0]")
        theirs = list(map(_shape, values))
        if theirs != shapes:
            i = next(i for i, pair in enumerate(zip(theirs, shapes, strict=True)) if pair[0] != pair[1])
            raise ValueError(f"{name}[{i}] has shape {tuple(theirs[i])}, {first}[{i}] has {tuple(shapes[i])}.")
        if list(map(Tensor.stride, values)) != strides:
            for i, (a, b) in enumerate(zip(values, base, strict=True)):
                if layout(a) != layout(b) and is_dense(b):  # with gaps there is no order of memory to share
                    raise ValueError(
                        f"{name}[{i}] has strides {a.stride()}, {first}[{i}] has {b.stride()}: kernels walk memory in "
                        f"one order. Copy it: torch.empty_like({first}[{i}]).copy_({name}[{i}])."
                    )
    if dense:
        for i, tensor in enumerate(base):
            if not is_dense(tensor):
                raise ValueError(
                    f"{first}[{i}] has gaps or overlaps in memory (shape {tuple(tensor.shape)}, strides "
                    f"{tensor.stride()}): use the 'reference' backend for it."
                )


def _same(name: str, what: str, found: list, wanted: object, of: str) -> None:
    if found.count(wanted) != len(found):
        i = next(i for i, value in enumerate(found) if value != wanted)
        raise ValueError(
            f"{name}[{i}] is on {found[i]}, {of} on {wanted}: one call takes tensors of one device."
            if what == "device"
            else f"{name}[{i}] is {found[i]}, {of} is {wanted}: one call takes tensors of one dtype."
        )


def check_outputs(name: str, outputs: Sequence[Tensor]) -> None:
    """Tensors that a sweep writes must not share memory: a tied weight is passed once."""
    spans = sorted(
        (t.data_ptr(), t.data_ptr() + t.nbytes, i) for i, t in enumerate(outputs) if t.numel() and is_dense(t)
    )
    for (_, end, i), (start, _, j) in zip(spans, spans[1:], strict=False):
        if start < end:
            raise ValueError(f"{name}[{min(i, j)}] and {name}[{max(i, j)}] share memory: pass a tied weight once.")


def layout(tensor: Tensor) -> tuple[int, ...]:
    """Strides, without those of dimensions of size 1 and of empty tensors: they have no meaning."""
    if tensor.numel() == 0:
        return ()
    return tuple(stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)


def is_dense(tensor: Tensor) -> bool:
    """True if the elements fill one block of memory, each place once, in whatever order of dimensions."""
    if tensor.is_contiguous() or tensor.numel() == 0:
        return True
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1):
        if stride != expected:
            return False
        expected *= size
    return True


# ---- what every backend checks first; `mask` is the dtype that its `pack` makes ----


def check_norms(weights, gradients, etas, masks, insides, mask, dense=False) -> None:
    if not 1 <= len(gradients) <= 2 or len(insides) != len(gradients):
        raise ValueError(f"gradients has {len(gradients)} lists, insides {len(insides)} entries: one or two of each.")
    lists = {"weights": weights} | {f"gradients[{k}]": grads for k, grads in enumerate(gradients)}
    _check(lists | {"masks": masks}, {"masks": mask}, dense, etas=etas)


def check_displace(weights, grads, outs, etas, masks, mask, dense=False) -> None:
    lists = {"weights": weights, "grads": grads, "outs": outs, "masks": masks}
    _check(lists, {"masks": mask}, dense, etas=etas)
    check_outputs("outs", [*outs, *weights])


def check_compose(direction: Direction, outs, accumulate, mask, dense=False) -> Sequence[Tensor]:
    """Check, and return where d goes."""
    lists = check_direction(direction)
    if outs is None:
        if accumulate:
            raise ValueError("accumulate=True needs outs: the tensors that d is added to.")
        outs = next(lists[name] for name in ("r1", "r0", "f0") if name in lists)
    _check({"outs": outs, **lists, "masks": direction.masks}, {"masks": mask}, dense)
    check_outputs("outs", outs)
    return outs


def check_direction(direction: Direction) -> dict:
    """The lists that are read, if they make a direction. It depends on lam, not only on the lists: for every call."""
    if (direction.lam_retain != 1 and direction.r1 is not None and direction.r0 is None) or (
        direction.f1 is not None and direction.f0 is None
    ):
        raise ValueError("The direction needs the clean gradient of a half (r0 or f0), and it is None.")
    lists = direction.lists()
    if not lists:
        raise ValueError("The direction has no gradient: pass r0, r1 or f0.")
    if direction.masks is None and direction.f0 is not None:
        raise ValueError("direction.masks=None with a forget half: pack one bool mask per weight.")
    return lists


def check_update(weights, direction, states, rules, backups, mask, dense=False) -> None:
    lists = {"weights": weights, **check_direction(direction), "masks": direction.masks, "backups": backups, **states}
    wide = torch.float32 if weights and weights[0].dtype in NARROW else (weights[0].dtype if weights else None)
    _check(lists, {"masks": mask} | dict.fromkeys(states, wide), dense, rules=rules)
    check_outputs("weights", [*weights, *(t for values in states.values() for t in values or ())])
    if "momenta" in states:
        for i, rule in enumerate(rules):
            if bool(rule.momentum) != bool(rules[0].momentum):
                raise ValueError(
                    f"rules[{i}].momentum={rule.momentum}, rules[0].momentum={rules[0].momentum}: one call takes "
                    "weights that all have momentum, or none."
                )
            if rule.momentum and states["momenta"] is None:
                raise ValueError(f"momenta=None, and rules[{i}].momentum={rule.momentum}: pass a buffer per weight.")


def _check(lists, dtypes, dense, **numbers) -> None:
    first = next(iter(lists))
    for name, values in numbers.items():
        if len(values) != len(lists[first]):
            raise ValueError(f"{name} has {len(values)} entries, {first} has {len(lists[first])}: one for each.")
    check_lists(first, lists, dtypes, dense)
