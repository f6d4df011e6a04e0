"""Inputs that reach every path of a kernel, and every operation with the flags that the trainer uses.

What an operation writes is poisoned with NaN beforehand and lies between guard bands, so that an element that is not
written, or one too many, shows. `formula` is the operation in float64, written out.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hf_sharp_unlearn.kernels import SGD, AdamW, Direction

BAND, PATTERN = 256, 77.0
SCALE = 0.3


class Spec(NamedTuple):
    """Where a tensor lies: its shape, its strides, and how many elements past an aligned address it begins."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    shift: int = 0


def layouts(quick: bool) -> dict[str, list[Spec]]:
    """Lists of tensors; sizes around a thread's 8 elements, a block's 1,024, a chunk's 16,384, and several chunks."""
    sizes = [1, 15, 16, 17, 1023, 1024, 1025, 16383, 16384, 16385, 49169, 1 << 20]
    sizes = [1, 16, 17, 1025, 16400] if quick else sizes
    deep = [(8, 16, 3, 3)] if quick else [(64, 48, 3, 3), (2, 17, 5, 7), (256, 512, 3, 3)]
    flat = [(30, 7)] if quick else [(300, 7), (257, 1040), (4112, 16)]
    return {
        "sizes": [Spec((n,), (1,)) for n in sizes],
        "one past alignment": [Spec((n,), (1,), 1) for n in sizes],
        "channels_last and transposed": [Spec((a, c, h, w), (c * h * w, 1, c * w, c)) for a, c, h, w in deep]
        + [Spec((b, a), (1, b)) for a, b in flat],
        "many small": [Spec((7,), (1,)) for _ in range(5 if quick else 300)],
    }


class Guarded:
    """Tensors of one role, each amid BAND elements of a pattern on either side."""

    def __init__(self, specs: Sequence[Spec], dtype: torch.dtype, device: torch.device):
        self.tensors, self._bands = [], []
        for shape, strides, shift in specs:
            low, count = BAND + shift, torch.Size(shape).numel()
            memory = torch.full((low + count + BAND,), PATTERN, dtype=dtype, device=device)
            self._bands += [memory[:low], memory[low + count :]]
            self.tensors.append(memory.as_strided(shape, strides, low).fill_(float("nan")))

    def intact(self) -> bool:
        return bool(torch.stack([(band == PATTERN).all() for band in self._bands]).all())


class Inputs:
    """Random lists by name, which operations only read: w, g, h, r0, r1, f0, f1 in `dtype`, and states in float32."""

    def __init__(self, specs: Sequence[Spec], dtype: torch.dtype, device: torch.device, seed: int):
        self.specs, self.dtype, self.device = specs, dtype, device
        self._generator = torch.Generator(device).manual_seed(seed)
        self._read: list[Guarded] = []
        self._written: list[Guarded] = []
        for name in ("w", "g", "h", "r0", "r1", "f0", "f1"):
            setattr(self, name, self._normal(dtype))
        self.v, self.m, s = (self._normal(torch.float32) for _ in range(3))
        self.s = [x.square_() for x in s]
        self.bools = [
            torch.rand(spec.shape, generator=self._generator, device=device) < 0.3 for spec in specs
        ]  # fmt: skip
        self._before = [[x.clone() for x in one.tensors] for one in self._read]

    def _normal(self, dtype: torch.dtype) -> list[Tensor]:
        self._read.append(Guarded(self.specs, dtype, self.device))
        for x in self._read[-1].tensors:
            x.copy_(torch.randn(x.shape, generator=self._generator, device=self.device))
        return self._read[-1].tensors

    def empty(self, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Where an operation writes: NaN everywhere."""
        self._written.append(Guarded(self.specs, dtype or self.dtype, self.device))
        return self._written[-1].tensors

    def copy(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Tensors that an operation changes."""
        return [out.copy_(x) for out, x in zip(self.empty(values[0].dtype), values, strict=True)]

    def etas(self, asam: bool) -> list[float | None]:
        return [[0.0, 0.1, None, 0.5][i % 4] if asam else None for i in range(len(self.w))]

    def untouched(self) -> str:
        """What was written that should not have been; empty if nothing."""
        changed = any(
            not torch.equal(x, y)
            for one, old in zip(self._read, self._before, strict=True)
            for x, y in zip(one.tensors, old, strict=True)
        )
        bands = all(one.intact() for one in (*self._read, *self._written))
        self._written.clear()
        return ("an input has changed; " if changed else "") + ("" if bands else "a guard band was written; ")


class Operation(NamedTuple):
    """run(backend, inputs) -> (lists by name, sums or None); formula(inputs) -> the same in float64.

    exact: lists must equal those of `reference` bit for bit. (AdamW: up to the rounding of torch's square root.)
    """

    name: str
    run: Callable
    formula: Callable
    exact: bool = True


def operations() -> list[Operation]:
    found = [norms(False, (None, None)), norms(True, (False, True)), norms(True, (None, True))]
    for asam in (False, True):
        found += [displace(asam, inside) for inside in (None, True, False)]
    found.append(perturb())
    for lams in ((1.0, 1.0), (0.0, 0.0), (0.3, 2.0)):
        found += [compose(lams, overlap, add) for overlap in (False, True) for add in (False, True)]
    found += [compose_half("r0"), compose_half("f0")]
    for adam in (False, True):
        found += [update(adam, "plain"), update(adam, "one sweep"), update(adam, "scaled"), update(adam, "skipped")]
    return found


def norms(asam: bool, insides: tuple) -> Operation:
    def run(k, x):
        masks = k.pack(x.bools, x.w) if any(inside is not None for inside in insides) else None
        return {}, k.norms(x.w, [x.g, x.h], x.etas(asam), masks, insides)

    def formula(x):
        sums = []
        for grads, inside in zip((x.g, x.h), insides, strict=True):
            parts = zip(x.w, _part(x, grads, inside), x.etas(asam), strict=True)
            sums.append(torch.stack([(_transform(w, eta) * g).square().sum() for w, g, eta in parts]).sum())
        return {}, torch.stack(sums)

    return Operation(f"norms {_sharp(asam)} {insides[0]} {insides[1]}", run, formula)


def displace(asam: bool, inside: bool | None) -> Operation:
    def run(k, x):
        masks = None if inside is None else k.pack(x.bools, x.w)
        k.displace(x.w, x.g, outs := x.empty(), x.etas(asam), SCALE, masks, inside)
        return {"outs": outs}, None

    return Operation(f"displace {_sharp(asam)} {inside}", run, lambda x: ({"outs": _moved(x, asam, inside)}, None))


def perturb() -> Operation:
    """In place, and back: the restored weights must be the old ones."""

    def run(k, x):
        w, backups, saved = x.copy(x.w), x.empty(), []
        k.perturb(w, x.g, backups, x.etas(True), SCALE, saved, k.pack(x.bools, x.w), True)
        moved, complete = [y.clone() for y in w], sorted(saved) == list(range(len(w)))
        k.restore(w, backups, saved)
        complete &= saved == [] and all(torch.equal(a, b) for a, b in zip(w, x.w, strict=True))
        if not complete:
            raise AssertionError("restore did not put the weights back bit for bit")
        return {"moved": moved, "backups": backups, "restored": w}, None

    def formula(x):
        old = [w.double() for w in x.w]
        return {"moved": _moved(x, True, True), "backups": old, "restored": old}, None

    return Operation("perturb and restore", run, formula)


def compose(lams: tuple[float, float], overlap: bool, add: bool) -> Operation:
    def run(k, x):
        direction = Direction(x.r0, x.r1, x.f0, x.f1, k.pack(x.bools, x.w), *lams, overlap)
        d, squares = k.compose(direction, x.copy(x.h) if add else x.empty(), accumulate=add)
        return {"d": d}, squares

    def formula(x):
        d = _direction(x, *lams, overlap)
        return {"d": [h.double() + y if add else y for h, y in zip(x.h, d, strict=True)]}, None

    return Operation(f"compose lam {lams[0]:g} {lams[1]:g} overlap {overlap} add {add}", run, formula)


def compose_half(name: str) -> Operation:
    """The other half is absent, and counts as zero."""

    def run(k, x):
        direction = Direction(**{name: getattr(x, name)}, masks=k.pack(x.bools, x.w))
        d, squares = k.compose(direction, x.empty())
        return {"d": d}, squares

    return Operation(f"compose {name} alone", run, lambda x: ({"d": _part(x, getattr(x, name), name == "f0")}, None))


def update(adam: bool, kind: str) -> Operation:
    """plain: along one list. one sweep: composed on the way. scaled: from backups, under a loss scale. skipped: the
    scaler has found inf."""

    def rules(x):
        if adam:
            return [AdamW(0.01, weight_decay=0.1 * (i % 2), step=i % 7 + 1) for i in range(len(x.w))]
        return [SGD(0.1, 0.9, 0.1 * (i % 2), 0.01 * (i % 3), i % 2 == 0) for i in range(len(x.w))]

    def run(k, x):
        direction, options = Direction(r0=x.g), {"norm": True, "scale": 0.7}
        if kind != "plain":
            direction = Direction(None, x.r1, x.f0, x.f1, k.pack(x.bools, x.w))
        if kind in ("scaled", "skipped"):
            options |= {"grad_scale": torch.tensor(8.0, device=x.device), "backups": x.w}
            options["found_inf"] = torch.tensor(float(kind == "skipped"), device=x.device)
        w = x.copy(x.h if kind in ("scaled", "skipped") else x.w)
        states = [x.copy(x.m), x.copy(x.s)] if adam else [x.copy(x.v)]
        squares = (k.adamw if adam else k.sgd)(w, direction, *states, rules(x), **options)
        return {"w": w} | {f"state {i}": state for i, state in enumerate(states)}, squares

    def formula(x):
        d = [y.double() for y in x.g] if kind == "plain" else _direction(x, 1.0, 1.0, False)
        squares = torch.stack([y.square().sum() for y in d]).sum()
        factor = 0.7 / (8.0 if kind in ("scaled", "skipped") else 1.0)
        states = [x.m, x.s] if adam else [x.v]
        made = []
        for y, w, rule, *state in zip(d, x.w, rules(x), *states, strict=True):
            state, w = [value.double() for value in state], w.double()
            made.append((w, *state) if kind == "skipped" else (_adamw if adam else _sgd)(w, y * factor, rule, *state))
        columns = [list(column) for column in zip(*made, strict=True)]
        return {"w": columns[0]} | {f"state {i}": column for i, column in enumerate(columns[1:])}, squares

    return Operation(f"{'adamw' if adam else 'sgd'} {kind}", run, formula, exact=not adam)


# ---- formulas, in float64 ----


def _sharp(asam: bool) -> str:
    return "ASAM" if asam else "SAM"


def _transform(w: Tensor, eta: float | None) -> Tensor | float:
    return 1.0 if eta is None else w.double().abs() + eta


def _part(x: Inputs, grads: Sequence[Tensor], inside: bool | None) -> list[Tensor]:
    if inside is None:
        return [g.double() for g in grads]
    return [torch.where(m == inside, g.double(), 0.0) for g, m in zip(grads, x.bools, strict=True)]


def _moved(x: Inputs, asam: bool, inside: bool | None) -> list[Tensor]:
    parts = zip(x.w, _part(x, x.g, inside), x.etas(asam), strict=True)
    return [w.double() + SCALE * _transform(w, eta) ** 2 * g for w, g, eta in parts]


def _direction(x: Inputs, lam_r: float, lam_f: float, overlap: bool) -> list[Tensor]:
    found = []
    for m, *lists in zip(x.bools, x.r0, x.r1, x.f0, x.f1, strict=True):
        r0, r1, f0, f1 = (y.double() for y in lists)
        r, f = r0 + lam_r * (r1 - r0), f0 - lam_f * (f1 - f0)
        found.append(r + torch.where(m, f, 0.0) if overlap else torch.where(m, f, r))
    return found


def _sgd(w: Tensor, d: Tensor, rule: SGD, v: Tensor) -> tuple[Tensor, Tensor]:
    d = d + rule.weight_decay * w
    v = rule.momentum * v + (1 - rule.dampening) * d
    return w - rule.lr * (d + rule.momentum * v if rule.nesterov else v), v


def _adamw(w: Tensor, d: Tensor, rule: AdamW, m: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    w = w * (1 - rule.lr * rule.weight_decay)
    m = rule.beta1 * m + (1 - rule.beta1) * d
    s = rule.beta2 * s + (1 - rule.beta2) * d**2
    size = (m / (1 - rule.beta1**rule.step)) / ((s / (1 - rule.beta2**rule.step)).sqrt() + rule.eps)
    return w - rule.lr * size, m, s
