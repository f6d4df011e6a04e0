"""SGD and AdamW whose step can be one sweep: compose the min-max gradient, clip, decay, momentum and update together.

They are torch's own optimizers, subclassed: same arguments, param groups and state, so a `state_dict` goes either way,
schedulers and hooks work as before, and `step()` alone is torch's step, bit for bit. After `stage(...)` the next
`step()` is a sweep of the kernels instead, with results equal to torch's to float tolerance:

    optimizer.stage(scale=clip)                        the gradients in `.grad`, scaled by a number on the way
    optimizer.stage(weights, Direction(...), ...)      a direction that was never written to memory: the masked
    optimizer.step()                                   partition update in one sweep

State of bfloat16 weights is float32. An AMP scaler's `found_inf` skips the update (and restores perturbed weights), and
so does, under a scaler, a staged direction that is not finite.
"""

from collections import defaultdict
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import kernels
from ..kernels import Direction
from ..kernels.direction import NARROW


class _Staged(NamedTuple):
    weights: Sequence[Tensor] | None
    direction: Direction | None
    scale: float
    backups: Sequence[Tensor] | None
    norm: bool
    backend: ModuleType | str


class _Sweeping:
    """What both optimizers share: staging, grouping into calls, state in float32."""

    _torch: type[torch.optim.Optimizer]
    _staged: _Staged | None = None  # on the class: a copy or a pickle of an optimizer has nothing staged
    _amp = False

    @property
    def can_sweep(self) -> bool:
        """False for options that the one-sweep step has no rule for."""
        return not any(group.get(option) for group in self.param_groups for option in ("amsgrad", "differentiable"))

    def unstage(self) -> None:
        """Forget what was staged: the next `step()` is torch's."""
        self._staged = None

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Asked by GradScaler: a staged step reads `grad_scale` and `found_inf` on the device."""
        return self._staged is not None or self._amp

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, value: bool) -> None:  # set by torch for fused=True
        self._amp = value

    def stage(
        self,
        weights: Sequence[Tensor] | None = None,
        direction: Direction | None = None,
        *,
        scale: float = 1.0,
        backups: Sequence[Tensor] | None = None,
        norm: bool = False,
        backend: ModuleType | str = "auto",
    ) -> None:
        """Make the next `step()` one sweep.

        weights, direction: parameters of this optimizer and, list by list, their gradients; masks as the backend's
            `pack` made them. Parameters that are not named do not move. Neither: all with a `.grad`, along it.
        scale: factor of the gradient, a clipping coefficient for instance.
        backups: where the true weights lie, if `weights` are perturbed: they are restored in the same sweep.
        norm: let `step()` return the squared norm of the gradient before `scale`, a 0-d tensor.
        backend: a name in kernels.BACKENDS, "auto", or a backend module.

        Raises ValueError for weights that are not this optimizer's, lists of other lengths, and for groups with amsgrad
        or differentiable.
        """
        if (weights is None) != (direction is None):
            raise ValueError("stage(weights, direction): pass both, or neither to step along `.grad`.")
        if not self.can_sweep:
            raise ValueError(
                "amsgrad=True or differentiable=True: the one-sweep update has no such rule. Do not stage."
            )
        if weights is None and backups is not None:
            raise ValueError("backups without weights: name the perturbed weights, and their direction.")
        lists = {} if direction is None else {**direction._asdict(), "backups": backups}
        for name in ("r0", "r1", "f0", "f1", "masks", "backups"):
            if lists.get(name) is not None and len(lists[name]) != len(weights):
                raise ValueError(f"{name} has {len(lists[name])} tensors, weights has {len(weights)}: one for each.")
        known = {id(p) for group in self.param_groups for p in group["params"]}
        for i, weight in enumerate(weights or ()):
            if id(weight) not in known:
                raise ValueError(f"weights[{i}] is no parameter of this optimizer.")
        self._staged = _Staged(weights, direction, scale, backups, norm, backend)

    def step(self, closure: Any = None) -> Any:
        """torch's step, or the staged sweep. Returns the closure's loss, or what `stage(norm=True)` asked for."""
        staged, self._staged = self._staged, None
        if staged is not None and closure is not None:
            raise ValueError("step(closure) after stage(): the gradients are there already. Call step().")
        if staged is None and self._has_wide_moments():  # torch's step wants moments in the weights' dtype
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            with torch.no_grad():
                self._sweep(_Staged(None, None, 1.0, None, False, "auto"))
            return loss
        if staged is not None:
            with torch.no_grad():
                return self._sweep(staged)
        plain = self._torch.step
        if getattr(plain, "hooked", False):  # torch wraps step in its hooks, and has wrapped ours already
            plain = plain.__wrapped__
        return plain(self, closure)

    def _has_wide_moments(self) -> bool:
        return any(
            value.dtype == torch.float32
            for weight, state in self.state.items()
            if _wide(weight) != weight.dtype
            for name, value in state.items()
            if name != "step" and torch.is_tensor(value)
        )

    def _sweep(self, staged: _Staged) -> Tensor | None:
        weights, direction = staged.weights, staged.direction
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if found_inf is not None and not torch.is_tensor(found_inf):  # a scaler that saw no `.grad` at all
            found_inf = torch.tensor(float(found_inf))
        if weights is None:
            weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
            direction = Direction(r0=[weight.grad for weight in weights])
        groups = {id(p): group for group in self.param_groups for p in group["params"]}
        calls = defaultdict(list)
        for i, weight in enumerate(weights):
            group = groups[id(weight)]
            calls[weight.device, weight.dtype, bool(group.get("momentum")), group["maximize"]].append(i)
        total = torch.zeros((), dtype=torch.float64) if staged.norm else None
        for (device, _, _, maximize), indices in calls.items():
            backend = staged.backend
            if isinstance(backend, str):
                backend = kernels.backend_for(device, [weights[i] for i in indices], backend)
            taken = [weights[i].detach() for i in indices]
            lists = direction._asdict()
            for name in ("r0", "r1", "f0", "f1", "masks"):
                lists[name] = None if lists[name] is None else [lists[name][i] for i in indices]
            found = found_inf
            if found is not None and staged.direction is not None:  # the scaler looked at `.grad`, not at these lists
                found = found.to(device, torch.float32) + _not_finite(backend, taken, Direction(**lists))
            squares = self._update(
                backend,
                taken,
                Direction(**lists),
                [(self.state[weights[i]], groups[id(weights[i])]) for i in indices],
                scale=-staged.scale if maximize else staged.scale,
                grad_scale=grad_scale,
                found_inf=found,
                norm=staged.norm,
                backups=None if staged.backups is None else [staged.backups[i] for i in indices],
            )
            if staged.norm:
                total = total.to(squares.device) + squares
        return total

    def load_state_dict(self, state_dict: dict) -> None:
        """torch casts state to the weights' dtype: moments of bfloat16 weights come back in float32 here."""
        super().load_state_dict(state_dict)
        mine = [p for group in self.param_groups for p in group["params"]]
        saved = [key for group in state_dict["param_groups"] for key in group["params"]]
        for weight, key in zip(mine, saved, strict=True):
            for name, value in state_dict["state"].get(key, {}).items():
                if weight.dtype != _wide(weight) and torch.is_tensor(value) and value.shape == weight.shape:
                    self.state[weight][name] = value.to(weight.device, _wide(weight), copy=True)


def _not_finite(backend: ModuleType, weights: list[Tensor], direction: Direction) -> Tensor:
    """1.0 if some list of the direction holds a value that is not finite, else 0.0; a 0-d tensor on the device."""
    sums = [backend.norms(weights, [grads], [None] * len(weights))[0] for grads in direction.lists().values()]
    return (~torch.stack(sums).isfinite().all()).to(weights[0].device, torch.float32)


def _wide(weight: Tensor) -> torch.dtype:
    return torch.float32 if weight.dtype in NARROW else weight.dtype


def _moment(state: dict, name: str, weight: Tensor) -> Tensor:
    """The weight's moment `name`, in float32 and in the weight's memory order; zeros at its first step."""
    value = state.get(name)
    if value is None:
        value = torch.zeros_like(weight, dtype=_wide(weight), requires_grad=False)
    elif value.dtype != _wide(weight) or value.stride() != weight.stride():
        value = torch.empty_like(weight, dtype=_wide(weight), requires_grad=False).copy_(value)
    state[name] = value
    return value


class SGD(_Sweeping, torch.optim.SGD):
    """torch.optim.SGD with a one-sweep step (momentum, dampening, Nesterov, weight decay, maximize)."""

    _torch = torch.optim.SGD

    def _update(self, backend, weights, direction, owners, **options) -> Tensor:
        rules, momenta = [], []
        fresh = [state for state, group in owners if group["momentum"] and state.get("momentum_buffer") is None]
        for weight, (state, group) in zip(weights, owners, strict=True):
            dampening = 0.0 if state.get("momentum_buffer") is None else group["dampening"]
            numbers = float(group["lr"]), group["momentum"], dampening, group["weight_decay"], group["nesterov"]
            rules.append(kernels.SGD(*numbers))
            if group["momentum"]:
                momenta.append(_moment(state, "momentum_buffer", weight))
        skipped = options["found_inf"] is not None and options["found_inf"] != 0
        total = backend.sgd(weights, direction, momenta or None, rules, **options)
        if skipped:  # no first step has been made: a buffer of zeros must not look like one
            for state in fresh:
                del state["momentum_buffer"]
        return total


class AdamW(_Sweeping, torch.optim.AdamW):
    """torch.optim.AdamW with a one-sweep step (not amsgrad)."""

    _torch = torch.optim.AdamW

    def _update(self, backend, weights, direction, owners, **options) -> Tensor:
        averages, squares, rules = [], [], []
        counters = []
        for weight, (state, group) in zip(weights, owners, strict=True):
            if "step" not in state:
                where = weight.device if group.get("fused") or group.get("capturable") else "cpu"  # as torch has it
                state["step"] = torch.zeros((), dtype=torch.float32, device=where)
            counters.append(state["step"])
        for weight, (state, group), count in zip(weights, owners, _counts(counters), strict=True):
            averages.append(_moment(state, "exp_avg", weight))
            squares.append(_moment(state, "exp_avg_sq", weight))
            betas = map(float, group["betas"])
            rules.append(kernels.AdamW(float(group["lr"]), *betas, group["eps"], group["weight_decay"], int(count) + 1))
        total = backend.adamw(weights, direction, averages, squares, rules, **options)
        if options["found_inf"] is None or options["found_inf"] == 0:
            for device in {count.device for count in counters}:
                torch._foreach_add_([count for count in counters if count.device == device], 1)
        return total


def _counts(steps: Sequence[Tensor]) -> list[float]:
    """Values of 0-d tensors, with one wait for each device."""
    by_device = defaultdict(list)
    for i, step in enumerate(steps):
        by_device[step.device].append(i)
    values = [0.0] * len(steps)
    for indices in by_device.values():
        for i, value in zip(indices, torch.stack([steps[i] for i in indices]).tolist(), strict=True):
            values[i] = value
    return values


def sweeping(cls: type, options: dict[str, Any]) -> tuple[type, dict[str, Any]] | None:
    """The optimizer here that does what a torch class does with these options, and its options; None for others."""
    if cls not in (torch.optim.SGD, torch.optim.AdamW) or options.get("amsgrad") or options.get("differentiable"):
        return None
    mine = SGD if cls is torch.optim.SGD else AdamW
    return mine, {name: value for name, value in options.items() if name not in ("fused", "foreach")}
