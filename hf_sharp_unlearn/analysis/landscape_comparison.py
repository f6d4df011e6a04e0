"""The landscapes of several checkpoints, side by side: numbers and two figures."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn
from transformers import default_data_collator

from ..data import Renumbered, class_order
from ..step import SAM, Sharpness
from .figures import new_figure
from .landscape import Landscape, Surface

LINES = [("#08306b", "-"), ("#d95f0e", "--"), ("#969696", ":"), ("#1b7837", "-."), ("#000000", (0, (5, 1)))]


@dataclass(frozen=True)
class Shape:
    """One model on one split. surface: 2-D; slice: 1-D, finer. sharpness: L(w + eps) - L(w) in nats. eigenvalue: of the
    Hessian, the largest modulus; residual: of its eigenvector, relative; iterations: of the power method."""

    surface: Surface
    slice: Surface
    sharpness: float
    eigenvalue: float
    residual: float
    iterations: int


def compare_landscapes(
    models: Mapping[str, nn.Module],
    datasets: Mapping[str, Any],
    *,
    points: int = 15,
    reach: float = 1.0,
    samples: int = 512,
    sharpness: Sharpness | None = None,
    seed: int = 0,
    collator: Callable | None = None,
    own: Mapping[str, tuple[Mapping[str, Any], Callable | None]] | None = None,
    label_names: Sequence[str] = ("labels",),
    batch_size: int = 256,
    progress: bool = True,
) -> dict[str, dict[str, Shape]]:
    """Return {model: {split: shape}}. All models of one architecture are moved along the same two draws of directions,
    each rescaled to the model's own filters, and see the same samples.

    own: {model: (split -> data set, collator)}, the same samples prepared for this model; `datasets` and `collator`
        serve all others. Labels are those of the first model: where another one calls its classes alike and numbers
        them otherwise, it gets them in its own numbers.
    points: of the surface, per dimension (odd); the slice has four times as many. sharpness: SAM(rho=0.1) if None.

    Raises ValueError for no models or splits, and models of other classes than the first one's.
    """
    if not models or not datasets:
        raise ValueError(f"models {list(models)}, datasets {list(datasets)}: need at least one of each.")
    found: dict[str, dict[str, Shape]] = {}
    first = next(iter(models.values()))
    orders = {name: None if model is first else class_order(first, model, name) for name, model in models.items()}
    for name, model in models.items():
        found[name] = {}
        sets, collate = (own or {}).get(name, (datasets, collator))
        if orders[name] is not None:
            collate = Renumbered(collate or default_data_collator, label_names, orders[name])
        for split, data in sets.items():
            landscape = Landscape(
                model,
                data,
                samples=samples,
                batch_size=batch_size,
                seed=seed,
                collator=collate,
                label_names=label_names,
            )
            options = {"reach": reach, "progress": progress}
            found[name][split] = Shape(
                landscape.surface(points, title=f"{name} {split} surface", **options),
                landscape.surface(4 * points + 1, dimensions=1, title=f"{name} {split} slice", **options),
                landscape.sharpness(sharpness or SAM(rho=0.1)),
                *landscape.top_eigenvalue(),
            )
    return found


def landscape_numbers(found: Mapping[str, Mapping[str, Shape]]) -> dict[str, dict[str, dict[str, Any]]]:
    """{model: {split: plain numbers}}, the grids included: what landscape.json holds."""
    return {
        name: {
            split: {
                **{key: _plain(value) for key, value in shape.surface.summary.items()},
                "sharpness": _plain(shape.sharpness),
                "top_eigenvalue": _plain(shape.eigenvalue),
                "eigenvector_residual": _plain(shape.residual),
                "power_iterations": shape.iterations,
                "samples": shape.surface.samples,
                "surface": {key: _plain(value) for key, value in asdict(shape.surface).items()},
                "slice": {key: _plain(value) for key, value in asdict(shape.slice).items()},
            }
            for split, shape in shapes.items()
        }
        for name, shapes in found.items()
    }


def draw_landscapes(found: Mapping[str, Mapping[str, Shape]], folder: str) -> list[str]:
    """Write surfaces.png (a row per split, a column per model, one colour scale a row) and slices.png; return paths."""
    os.makedirs(folder, exist_ok=True)
    paths = [os.path.join(folder, name) for name in ("surfaces.png", "slices.png")]
    for path, draw in zip(paths, (_surfaces, _slices), strict=True):
        draw(found).savefig(path, dpi=110)
    return paths


def _surfaces(found: Mapping[str, Mapping[str, Shape]]) -> Any:
    from matplotlib.colors import LogNorm

    splits = list(next(iter(found.values())))
    figure = new_figure(3.3 * len(found) + 1, 3.1 * len(splits))
    for row, (split, axes) in enumerate(
        zip(splits, figure.subplots(len(splits), len(found), squeeze=False, sharex=True, sharey=True), strict=True)
    ):
        # Losses span orders of magnitude. 0.001 nats: below it a classifier is right and sure of it.
        losses = [_shown(shapes[split].surface.losses) for shapes in found.values()]
        low, high = min(map(np.nanmin, losses)), max(map(np.nanmax, losses))
        norm = LogNorm(low, max(high, low * 1.01))
        levels = np.geomspace(norm.vmin, norm.vmax, 16)
        for axis, (name, shapes), loss in zip(axes, found.items(), losses, strict=True):
            a, b = shapes[split].surface.offsets
            filled = axis.contourf(a, b, loss.T, levels=levels, norm=norm, cmap="viridis")
            axis.contour(a, b, loss.T, levels=levels[::2], colors="white", linewidths=0.5, alpha=0.7)
            axis.plot(0, 0, marker="+", color="red", markersize=9)
            if row == 0:
                axis.set_title(name)
            if row == len(splits) - 1:
                axis.set_xlabel("direction 1")
        axes[0].set_ylabel(f"{split} set\ndirection 2")
        bar = figure.colorbar(filled, ax=list(axes), ticks=levels[::3], format="%.3g")
        bar.set_label("loss (nats)")
    return figure


def _slices(found: Mapping[str, Mapping[str, Shape]]) -> Any:
    splits = list(next(iter(found.values())))
    figure = new_figure(4.4 * len(splits) + 0.4, 3.8)
    for axis, split in zip(figure.subplots(1, len(splits), squeeze=False)[0], splits, strict=True):
        for i, (name, shapes) in enumerate(found.items()):
            shape = shapes[split]
            color, line = LINES[i % len(LINES)]
            label = f"{name}: top eigenvalue {shape.eigenvalue:.3g}"
            axis.plot(
                shape.slice.offsets[0],
                _shown(shape.slice.losses[:, 0]),
                color=color,
                linestyle=line,
                linewidth=2,
                label=label,
            )
        axis.set_yscale("log")
        axis.set_title(f"{split} set (n = {shape.slice.samples})")
        axis.set_xticks(np.linspace(*shape.slice.offsets[0][[0, -1]], 5))
        axis.set_xlabel("direction 1, filter-normalised")
        axis.set_ylabel("loss (nats)")
        axis.grid(alpha=0.25, which="both")
        axis.legend(fontsize=8)
    return figure


def _shown(losses: np.ndarray) -> np.ndarray:
    """Losses for a logarithmic scale; gaps where they are not finite (1e-3 alone where none is)."""
    finite = np.where(np.isfinite(losses), np.maximum(losses, 1e-3), np.nan)
    return finite if np.isfinite(finite).any() else np.full_like(losses, 1e-3)


def _plain(value: Any) -> Any:
    """Lists for arrays, and None for what JSON has no number for."""
    if isinstance(value, np.ndarray | tuple | list):
        return [_plain(part) for part in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value
