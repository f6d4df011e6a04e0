"""The loss around a solution: a filter-normalised surface, slices, sharpness, and the largest curvature.

surface     L(w + a d1 + b d2) on a grid. d1, d2: Gaussian directions, each filter (row of a weight) rescaled to the
norm
            of the filter of w (Li et al., NeurIPS 2018, arXiv 1712.09913); biases and normalisation weights stay, as
            there. The second direction is orthogonal to the first. A slice is the surface along one direction.
sharpness   L(w + eps) - L(w) with the perturbation of SAM or ASAM (see `sharpness`): one ascent step of length rho
curvature   the eigenvalue of the Hessian of L with the largest modulus, by power iteration on Hessian-vector products

(The released code of Sharp MinMax normalises by tensor, not by filter.) Everything is in eval mode: BatchNorm uses the
statistics of the checkpoint. Weights and buffers come back bit for bit, whatever is raised.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from transformers import default_data_collator

from ..data import count_items
from ..kernels import reference
from ..runtime import Inputs, derive_seed, evaluating, isolated_rng, progress_bar
from ..step import Sharpness, shifts_labels
from .fine_tuning import model_loss


@dataclass(frozen=True)
class Surface:
    """losses: (A, B) mean loss at each grid point, nats. offsets: (A,) and (B,) multiples of the directions; B = 1
    for a slice. samples: number of samples behind each loss."""

    losses: np.ndarray
    offsets: tuple[np.ndarray, np.ndarray]
    samples: int

    @property
    def summary(self) -> dict[str, float]:
        """centre: L(w); rise: mean of L - L(w) over the grid; variability: standard deviation over the grid; slope:
        mean length of the gradient, per unit of the offsets (independent of the grid's resolution)."""
        centre = self.losses[np.abs(self.offsets[0]).argmin(), np.abs(self.offsets[1]).argmin()]
        used = [axis for axis in (0, 1) if len(self.offsets[axis]) > 1]
        with np.errstate(invalid="ignore"):  # inf - inf: the number is nan
            slopes = [np.gradient(self.losses, self.offsets[axis], axis=axis) for axis in used]
            slope = np.sqrt(sum(s**2 for s in slopes)).mean() if slopes else 0.0
            numbers = (centre, (self.losses - centre).mean(), self.losses.std(), slope)
        return dict(zip(("centre", "rise", "variability", "slope"), map(float, numbers), strict=True))


class Landscape:
    """The mean loss of a model over some samples, as a function of its weights.

    dataset: map-style; at most `samples` of it are used, the same ones each time, drawn with the seed. They are kept on
    the model's device. Raises ValueError for an empty data set, or a model without trainable parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Any,
        *,
        samples: int = 512,
        batch_size: int = 256,
        seed: int = 0,
        collator: Callable | None = None,
        label_names: Sequence[str] = ("labels",),
    ):
        if len(dataset) == 0 or samples < 1:
            raise ValueError(f"dataset has {len(dataset)} samples, samples={samples}: need at least one.")
        self.model, self.seed = model, seed
        self.params = [weight for weight in model.parameters() if weight.requires_grad]
        if not self.params:
            raise ValueError("model has no trainable parameters: there is nothing to move.")
        self._names, self._shift = tuple(label_names), shifts_labels(model)
        draw = np.random.default_rng(derive_seed(seed, "landscape"))
        rows = np.sort(draw.permutation(len(dataset))[:samples])
        prepared = Inputs(model, label_names)
        with isolated_rng():
            loader = DataLoader(
                [dataset[int(row)] for row in rows], batch_size, collate_fn=collator or default_data_collator
            )
            self._batches = [prepared(batch) for batch in loader]
        self._items = [count_items(batch, self._names, self._shift) for batch in self._batches]
        if not sum(self._items):
            raise ValueError(
                f"No label of the {len(rows)} samples counts (label_names={self._names}): there is no loss."
            )
        self.samples = len(rows)

    def loss(self) -> float:
        """The mean loss over all items at the weights as they are."""
        with evaluating(self.model), isolated_rng(), torch.no_grad():
            return self._mean(float(loss) * items for loss, items in self._losses())

    def surface(
        self, points: int = 21, reach: float = 1.0, dimensions: int = 2, title: str = "landscape", progress: bool = True
    ) -> Surface:
        """The loss on a grid of `points` (odd, so that w is one of them) per dimension from -reach to reach."""
        if points < 3 or points % 2 == 0 or dimensions not in (1, 2) or not reach > 0:
            raise ValueError(
                f"points={points}, reach={reach}, dimensions={dimensions}: need an odd number >= 3, > 0, and 1 or 2."
            )
        first, second = self._directions()
        grid = np.linspace(-reach, reach, points)
        grid[points // 2] = 0.0
        offsets = grid, grid if dimensions == 2 else np.zeros(1)
        losses = np.zeros((len(offsets[0]), len(offsets[1])))
        with (
            self._moving() as start,
            progress_bar(total=losses.size, desc=title, disable=not progress, leave=False) as bar,
        ):
            for index in np.ndindex(*losses.shape):
                a, b = (float(offsets[axis][index[axis]]) for axis in (0, 1))
                for weight, w, d1, d2 in zip(self.params, start, first, second, strict=True):
                    weight.copy_(w).add_(d1, alpha=a).add_(d2, alpha=b)
                losses[index] = self.loss()
                bar.update()
        return Surface(losses, offsets, self.samples)

    def sharpness(self, sharpness: Sharpness) -> float:
        """L(w + eps) - L(w), nats: how much the loss rises within the radius of SAM or ASAM, to first order."""
        grads = self._gradient()
        with self._moving() as start:
            before = self.loss()
            etas = [sharpness.eta_of(weight) for weight in self.params]
            scaled = [g if eta is None else (w.abs() + eta) * g for w, g, eta in zip(start, grads, etas, strict=True)]
            if (norm := _dot(scaled, scaled) ** 0.5) == 0:
                return 0.0
            reference.displace(start, grads, self.params, etas, sharpness.rho / norm)
            return self.loss() - before

    def top_eigenvalue(self, iterations: int = 100, tolerance: float = 1e-4) -> tuple[float, float, int]:
        """(eigenvalue of the Hessian with the largest modulus, relative residual ||Hv - lambda v|| / |lambda|,
        iterations).

        Stops when the eigenvalue changes by less than `tolerance` of itself. Power iteration finds the largest
        modulus; at a minimum that is the largest eigenvalue. Raises FloatingPointError if a product is not finite.
        """
        draw = torch.Generator().manual_seed(derive_seed(self.seed, "eigenvector"))
        vector = [torch.randn(w.shape, generator=draw).to(w.device, w.dtype) for w in self.params]
        value, residual, made = 0.0, 0.0, 0
        while made < iterations:
            norm = _dot(vector, vector) ** 0.5
            vector = [v / norm for v in vector]
            image = self._hessian_product(vector)
            made += 1
            before, value = value, _dot(vector, image)
            if not np.isfinite(value):
                raise FloatingPointError(f"A Hessian-vector product is not finite (iteration {made}).")
            rest = [h - value * v for h, v in zip(image, vector, strict=True)]
            residual = _dot(rest, rest) ** 0.5 / max(abs(value), 1e-30)
            if value == 0 or abs(value - before) <= tolerance * abs(value):
                break
            vector = image
        return value, residual, made

    def _hessian_product(self, vector: list[Tensor]) -> list[Tensor]:
        total = [torch.zeros_like(v) for v in vector]
        # The fused attention kernels have no second derivative.
        with evaluating(self.model), isolated_rng(), sdpa_kernel(SDPBackend.MATH):
            for loss, items in self._losses():
                grads = torch.autograd.grad(loss, self.params, create_graph=True, materialize_grads=True)
                products = torch.autograd.grad(grads, self.params, vector, materialize_grads=True)
                torch._foreach_add_(total, products, alpha=items / sum(self._items))
        return total

    def _gradient(self) -> list[Tensor]:
        total = [torch.zeros_like(weight) for weight in self.params]
        with evaluating(self.model), isolated_rng():
            for loss, items in self._losses():
                grads = torch.autograd.grad(loss, self.params, materialize_grads=True)
                torch._foreach_add_(total, grads, alpha=items / sum(self._items))
        return total

    def _losses(self) -> Iterator[tuple[Tensor, int]]:
        for batch, items in zip(self._batches, self._items, strict=True):
            if items:
                yield model_loss(self.model, batch, self._names, self._shift), items

    def _mean(self, sums: Iterable[float]) -> float:
        return float(sum(sums) / sum(self._items))

    def _directions(self) -> tuple[list[Tensor], list[Tensor]]:
        """Drawn with the seed, so two checkpoints of one architecture get the same two draws."""
        draw = torch.Generator().manual_seed(derive_seed(self.seed, "directions"))
        raw = [[torch.randn(w.shape, generator=draw).to(w.device, w.dtype) for w in self.params] for _ in range(2)]
        first = [_filter_normalised(d, w) for d, w in zip(raw[0], self.params, strict=True)]
        second = []
        for d, f, w in zip(raw[1], first, self.params, strict=True):
            # Filter by filter, so that rescaling the filters afterwards keeps the two orthogonal.
            along = (_rows(d) * _rows(f)).sum(1) / (_rows(f) ** 2).sum(1).clamp(min=1e-30)
            second.append(_filter_normalised(d - (along[:, None] * _rows(f)).view_as(d), w))
        return first, second

    @contextlib.contextmanager
    def _moving(self) -> Iterator[list[Tensor]]:
        """The weights may be written inside the block; afterwards they are what they were."""
        start = [weight.detach().clone() for weight in self.params]
        try:
            with torch.no_grad():
                yield start
        finally:
            with torch.no_grad():
                for weight, w in zip(self.params, start, strict=True):
                    weight.copy_(w)


def _filter_normalised(direction: Tensor, weight: Tensor) -> Tensor:
    if weight.ndim <= 1:
        return torch.zeros_like(weight)
    lengths = [_rows(x.detach()).norm(dim=1) for x in (weight, direction)]
    scale = torch.where(lengths[1] > 0, lengths[0] / lengths[1].clamp(min=1e-30), 0)
    return (scale[:, None] * _rows(direction)).view_as(direction)


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(len(tensor), -1) if tensor.ndim else tensor.reshape(1, 1)


def _dot(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return float(sum(float((x.double() * y.double()).sum()) for x, y in zip(one, other, strict=True)))
