"""`sharp-unlearn landscape`: the loss around checkpoints."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..analysis import compare_landscapes, draw_landscapes, landscape_numbers
from ..runtime import write_text
from ..step import SAM
from .folders import letting_go
from .options import DATA, MODEL, Columns, Run, option, required
from .parsing import parse
from .preparing import Preparation


@dataclass
class Models:
    _argument_group_name = "models"

    models: list[str] = required(f"checkpoints to compare: each {MODEL}")
    names: list[str] = option("how they are called in the figure; default: the folders' names", [])


@dataclass
class Data:
    _argument_group_name = "data"

    forget: str = required(f"the forget set: {DATA}")
    test: str | None = option("samples that no model has seen")


@dataclass
class Grid:
    _argument_group_name = "landscape"

    points: int = option("grid points per dimension (odd)", 15)
    reach: float = option("how far from the weights, in units of the filters", 1.0)
    samples: int = option("samples of each set behind every loss", 512)
    rho: float = option("radius of the SAM sharpness", 0.1)


@letting_go()
def main(argv: Sequence[str]) -> None:
    models, data, columns, grid, run = parse(
        "landscape",
        "Filter-normalised loss surfaces and slices (Li et al. 2018) of each model on each set, in one figure, and "
        "landscape.json with the numbers.",
        (Models, Data, Columns, Grid, Run),
        argv,
    )
    run.start("landscape", "landscape.json")
    names = models.names or [os.path.basename(os.path.normpath(path)) for path in models.models]
    if len(names) != len(models.models) or len(set(names)) < len(names):
        raise ValueError(f"--names {names}: give each of the {len(models.models)} models a name of its own.")
    ready = Preparation({"forget": data.forget, "test": data.test}, columns, models.models[0])
    own = {name: ready.of(path, "--models") for name, path in zip(names, models.models, strict=True)}
    found = compare_landscapes(
        {name: run.load_model(path) for name, path in zip(names, models.models, strict=True)},
        ready.sets,
        own=own,
        points=grid.points,
        reach=grid.reach,
        samples=grid.samples,
        sharpness=SAM(rho=grid.rho),
        batch_size=run.batch_size,
        seed=run.seed,
    )
    os.makedirs(run.output_dir, exist_ok=True)
    numbers, path = landscape_numbers(found), os.path.join(run.output_dir, "landscape.json")
    write_text(path, json.dumps(numbers, allow_nan=False))
    paths = draw_landscapes(found, run.output_dir)
    keys = ("centre", "rise", "variability", "slope", "sharpness", "top_eigenvalue", "eigenvector_residual")
    for name, splits in numbers.items():
        for split, values in splits.items():
            print(f"{name}, {split} set: " + ", ".join(f"{key} {_shown(values[key])}" for key in keys))
    print("written: " + ", ".join([*paths, path]))


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
