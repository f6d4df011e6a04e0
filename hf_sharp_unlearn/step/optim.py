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
from .calls import Call, Calls, wide


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
    # On the class: a copy or a pickle of an optimizer has nothing staged, and knows nothing of the other's weights.
    _staged: _Staged | None = None
    _known: Calls | None = None
    _amp = False

    @property
    def can_sweep(self) -> bool:
        """False for options that the one-sweep step has no rule for."""
        return not any(group.get(option) for group in self.param_groups for option in ("amsgrad", "differentiable"))

    def unstage(self) -> None:
        """Forget what was staged: the next `step()` is torch's. Memory of weights that were moved away is let go."""
        self._staged = self._known = None

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
            if wide(weight) != weight.dtype
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
        if self._known is None or not self._known.hold(weights, self.param_groups):
            self._known = Calls(weights, self.param_groups)
        total = torch.zeros((), dtype=torch.float64) if staged.norm else None
        for call in self._known.calls:
            device = call.weights[0].device
            backend = staged.backend
            if isinstance(backend, str):
                backend = kernels.backend_for(device, call.weights, backend)
            whole = len(call.indices) == len(weights)
            lists = direction._asdict()
            for name in ("r0", "r1", "f0", "f1", "masks"):
                if lists[name] is not None and not whole:
                    lists[name] = [lists[name][i] for i in call.indices]
            mine, found = Direction(**lists), found_inf
            if found is not None and staged.direction is not None:  # the scaler looked at `.grad`, not at these lists
                found = found.to(device, torch.float32) + _not_finite(backend, call.weights, mine)
            squares = self._update(
                backend,
                call,
                mine,
                scale=-staged.scale if self.param_groups[call.places[0]]["maximize"] else staged.scale,
                grad_scale=grad_scale,
                found_inf=found,
                norm=staged.norm,
                backups=None if staged.backups is None else [staged.backups[i] for i in call.indices],
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
                if weight.dtype != wide(weight) and torch.is_tensor(value) and value.shape == weight.shape:
                    self.state[weight][name] = value.to(weight.device, wide(weight), copy=True)


def _not_finite(backend: ModuleType, weights: list[Tensor], direction: Direction) -> Tensor:
    """1.0 if some list of the direction holds a value that is not finite, else 0.0; a 0-d tensor on the device."""
    sums = [backend.norms(weights, [grads], [None] * len(weights))[0] for grads in direction.lists().values()]
    return (~torch.stack(sums).isfinite().all()).to(weights[0].device, torch.float32)


class SGD(_Sweeping, torch.optim.SGD):
    """torch.optim.SGD with a one-sweep step (momentum, dampening, Nesterov, weight decay, maximize)."""

    _torch = torch.optim.SGD

    def _update(self, backend: ModuleType, call: Call, direction: Direction, **options: Any) -> Tensor | None:
        states = [self.state[param] for param in call.params]
        fresh, momenta = [], None
        if self.param_groups[call.places[0]]["momentum"]:
            fresh = [state.get("momentum_buffer") is None for state in states]
            momenta = call.moments(states, "momentum_buffer")
        later = [kernels.SGD(*map(float, numbers), nesterov) for *numbers, nesterov in map(_sgd, self.param_groups)]
        first = [rule._replace(dampening=0.0) for rule in later]
        rules = [later[place] for place in call.places]
        if any(fresh):
            rules = [(first if new else later)[place] for place, new in zip(call.places, fresh, strict=True)]
        skipped = options["found_inf"] is not None and options["found_inf"] != 0
        total = backend.sgd(call.weights, direction, momenta, rules, **options)
        if skipped:  # no first step has been made: a buffer of zeros must not look like one
            for state, new in zip(states, fresh, strict=False):
                if new:
                    del state["momentum_buffer"]
        return total


def _sgd(group: dict) -> tuple:
    return group["lr"], group["momentum"], group["dampening"], group["weight_decay"], group["nesterov"]


class AdamW(_Sweeping, torch.optim.AdamW):
    """torch.optim.AdamW with a one-sweep step (not amsgrad)."""

    _torch = torch.optim.AdamW

    def _update(self, backend: ModuleType, call: Call, direction: Direction, **options: Any) -> Tensor | None:
        states = [self.state[param] for param in call.params]
        groups = [self.param_groups[place] for place in call.places]
        for state, group, weight in zip(states, groups, call.weights, strict=True):
            if "step" not in state:
                where = weight.device if group.get("fused") or group.get("capturable") else "cpu"  # as torch has it
                state["step"] = torch.zeros((), dtype=torch.float32, device=where)
        counters = [state["step"] for state in states]
        counts = list(zip(call.places, map(int, _counts(counters)), strict=True))
        known = {key: _adamw(self.param_groups[key[0]], key[1] + 1) for key in set(counts)}  # most share one
        rules = [known[key] for key in counts]
        averages, squares = (call.moments(states, name) for name in ("exp_avg", "exp_avg_sq"))
        total = backend.adamw(call.weights, direction, averages, squares, rules, **options)
        if options["found_inf"] is None or options["found_inf"] == 0:
            for device in {count.device for count in counters}:
                one = torch.ones((), device=device)  # a number would be made a tensor again for each of them
                torch._foreach_add_([count for count in counters if count.device == device], one)
        return total


def _adamw(group: dict, step: int) -> kernels.AdamW:
    return kernels.AdamW(float(group["lr"]), *map(float, group["betas"]), group["eps"], group["weight_decay"], step)


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
