"""The kernels over one step's parameters: norms, perturb and return, compose.

How weights are perturbed: w + eps is written to a shadow, and the parameter points to the shadow during the pass. The
weights themselves are never written to, so nothing can damage them, and nothing has to be copied back: 12 bytes a
parameter instead of 28 (read w and g, write the shadow; against backup, perturb and restore). Where a parameter's
address must stay (`in_place`: a compiled model, a parameter that is part of a larger block of memory, as in cuDNN's
recurrent layers, or one that a buffer is a view of) it is backed up, moved in place and restored from the backup.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import Direction
from ..kernels.table import Steady
from .sharpness import Sharpness, realised_cosine

Gradient = list[Tensor | None]


def packed(masks: Mapping[str, Tensor], module: nn.Module, kernels: ModuleType) -> dict[str, Tensor]:
    """Boolean masks by parameter name, in the form that the kernels read; made once a run."""
    weights = dict(module.named_parameters())
    return {name: kernels.pack([mask], [weights[name].detach()])[0] for name, mask in masks.items()}


def must_stay(module: nn.Module) -> bool:
    """True if something else lies in, or is a view of, a trainable weight's memory: a pass may read it there."""
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    weights = [w for w in module.parameters() if w.requires_grad]
    others = tensors.keys() - {id(w) for w in weights}
    blocks = {tensors[i].untyped_storage().data_ptr() for i in others if tensors[i].numel()}
    return any(w.untyped_storage().nbytes() != w.nbytes or w.untyped_storage().data_ptr() in blocks for w in weights)


class Sweeps:
    """Sweeps over `params`; see the module's docstring.

    masks: one per parameter, as the backend packed them, or None. shadows: memory for perturbed weights, by position,
    kept by the caller from step to step (fresh memory is slow). cast_of: None, or record in `cosines` how the
    perturbation that the weights took lies to the one that was meant, and so does the one that products read after
    `cast_of()`, where that is not None (see `sharpness.realised_cosine`).
    """

    def __init__(
        self,
        params: Sequence[nn.Parameter],
        masks: Sequence[Tensor] | None,
        kernels: ModuleType,
        shadows: dict[int, Tensor],
        in_place: bool,
        cast_of: Callable[[], Callable[[Tensor], Tensor] | None] | None,
    ):
        # Name in the log -> those of all perturbations since they were last taken away.
        self.cosines: dict[str, list[float]] = {}
        self._params, self._masks, self._kernels = params, masks, kernels
        self._weights = [param.detach() for param in params]  # where the true weights lie
        self._shadows, self.in_place, self._cast_of = shadows, in_place, cast_of
        self._grouped: dict[tuple[bool, ...], list[tuple[int, ...]]] = {}
        self._lists: dict[tuple[str, tuple[int, ...]], Steady] = {}
        self._etas: dict[tuple[tuple[int, ...], Sharpness], list[float | None]] = {}
        self._saved: list[tuple[list[Tensor], list[Tensor], list[int]]] = []  # in place: weights, backups, positions

    def in_their_place(self) -> bool:
        """True if the true weights lie where they lay: what is kept of them is true."""
        return all(
            param.data_ptr() == weight.data_ptr() and param.dtype == weight.dtype and param.shape == weight.shape
            for param, weight in zip(self._params, self._weights, strict=True)
        )

    def squared_lengths(self, sharpness: Sharpness, parts: Sequence[tuple[Gradient, bool | None]]) -> list[Tensor]:
        """|| T g ||^2 of one or two (gradient, inside), in one sweep: a tensor (parts,) for each dtype and device."""
        sums = []
        insides = [inside for _, inside in parts]
        for group in self._groups(*(gradient for gradient, _ in parts)):
            weights, etas = self._of(group, sharpness)
            gradients = [self._dense(gradient, group) for gradient, _ in parts]
            masks = None if insides.count(None) == len(insides) else self._masks_of(group)
            sums.append(self._kernels.norms(weights, gradients, etas, masks, insides))
        return sums

    def move(self, sharpness: Sharpness, gradient: Gradient, inside: bool | None, length: float) -> None:
        """Put the parameters at w + eps; `length` is || T g ||."""
        scale = sharpness.rho / length
        for group in self._groups(gradient):
            weights, etas = self._of(group, sharpness)
            grads, shadows = [gradient[i] for i in group], self._shadows_of(group)
            masks = None if inside is None else self._masks_of(group)
            if self.in_place:
                self._saved.append((weights, shadows, saved := []))
                self._kernels.perturb(weights, grads, shadows, etas, scale, saved, masks, inside)
                before, after = shadows, weights
            else:
                self._kernels.displace(weights, grads, shadows, etas, scale, masks, inside)
                for i, shadow in zip(group, shadows, strict=True):
                    self._params[i].data = shadow
                before, after = weights, shadows
            if self._cast_of is not None:
                self._compare(self._cast_of(), before, after, grads, etas, scale, masks, inside)

    def _compare(self, cast: Callable[[Tensor], Tensor] | None, *moved: Any) -> None:
        self.cosines.setdefault("perturbation_cosine", []).append(realised_cosine(*moved))
        if cast is not None:
            self.cosines.setdefault("perturbation_cosine_cast", []).append(realised_cosine(*moved, cast=cast))

    def back(self) -> None:
        """The true weights, wherever the perturbation stands, bit for bit. Safe to call again after an interrupt."""
        while self._saved:
            self._kernels.restore(*self._saved[-1])
            self._saved.pop()
        if not self.in_place:
            for param, weight in zip(self._params, self._weights, strict=True):
                param.data = weight

    def compose(
        self, halves: Sequence[Gradient | None], lam_retain: float, lam_forget: float, overlap: bool
    ) -> tuple[Gradient, Tensor]:
        """The min-max gradient of (r0, r1, f0, f1), None where no pass reached a parameter; and its squared norm."""
        composed: Gradient = [None] * len(self._params)
        sums = []
        for group in self._groups(*(gradient for gradient in halves if gradient is not None)):
            masks = self._masks_of(group)
            lists = [None if gradient is None else self._dense(gradient, group) for gradient in halves]
            values, squares = self._kernels.compose(Direction(*lists, masks, lam_retain, lam_forget, overlap))
            sums.append(squares)
            for i, value in zip(group, values, strict=True):
                composed[i] = value
        return composed, _sum(sums)

    def squares(self, gradient: Gradient) -> Tensor:
        """Squared norm of a gradient, a 0-d tensor."""
        sums = []
        for group in self._groups(gradient):
            weights = self._weights_of(group)
            sums.append(self._kernels.norms(weights, [self._dense(gradient, group)], [None] * len(group))[0])
        return _sum(sums)

    def _groups(self, *gradients: Gradient) -> list[tuple[int, ...]]:
        """Positions that some gradient reaches, in lists of one dtype and device: what one call of a kernel takes."""
        reached = tuple(any(one is not None for one in column) for column in zip(*gradients, strict=True))
        found = self._grouped.get(reached)
        if found is None:
            groups: dict[tuple, list[int]] = {}
            for i, weight in enumerate(self._weights):
                if reached[i]:
                    groups.setdefault((weight.dtype, weight.device), []).append(i)
            found = self._grouped[reached] = list(map(tuple, groups.values()))
        return found

    def _of(self, group: tuple[int, ...], sharpness: Sharpness) -> tuple[Steady, list[float | None]]:
        weights = self._weights_of(group)
        if (group, sharpness) not in self._etas:
            self._etas[group, sharpness] = [sharpness.eta_of(weight) for weight in weights]
        return weights, self._etas[group, sharpness]

    def _weights_of(self, group: tuple[int, ...]) -> Steady:
        return self._kept("weights", group, lambda: [self._weights[i] for i in group])

    def _masks_of(self, group: tuple[int, ...]) -> Steady:
        return self._kept("masks", group, lambda: [self._masks[i] for i in group])

    def _shadows_of(self, group: tuple[int, ...]) -> Steady:
        return self._kept("shadows", group, lambda: [self._shadow_of(i) for i in group])

    def _kept(self, kind: str, group: tuple[int, ...], make: Callable[[], list[Tensor]]) -> Steady:
        """A list that is the same in every step, so that what kernels know of it is read once."""
        if (kind, group) not in self._lists:
            self._lists[kind, group] = Steady(make())
        return self._lists[kind, group]

    def _dense(self, gradient: Gradient, group: tuple[int, ...]) -> list[Tensor]:
        """The gradients of a group; zeros for a parameter that this pass did not reach and another one did."""
        return [torch.zeros_like(self._weights[i]) if gradient[i] is None else gradient[i] for i in group]

    def _shadow_of(self, index: int) -> Tensor:
        weight, shadow = self._weights[index], self._shadows.get(index)
        if shadow is None or (shadow.shape, shadow.dtype, shadow.device) != (weight.shape, weight.dtype, weight.device):
            shadow = self._shadows[index] = torch.empty_like(weight)
        return shadow


def _sum(values: list[Tensor]) -> Tensor:
    if len(values) == 1:
        return values[0]
    return torch.tensor(math.fsum(value.item() for value in values), dtype=torch.float64)
