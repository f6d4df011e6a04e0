"""`sharp-unlearn landscape`: the loss around checkpoints."""

import argparse
import json
import os
from typing import Any

from ..analysis.landscape_comparison import compare_landscapes, draw_landscapes, landscape_numbers
from ..sharpness import SAM
from ..sources import collator_for
from .options import MODEL, command, data_group, data_of, model_of, refuse_finished, run_group


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = command(
        commands,
        shared,
        "landscape",
        "draw the loss around one or more checkpoints, with sharpness and top Hessian eigenvalue",
        "Filter-normalised loss surfaces and slices (Li et al. 2018) of each model on each set, in one figure, and "
        "landscape.json with the numbers.",
    )
    models = parser.add_argument_group("models", MODEL)
    models.add_argument("--models", nargs="+", required=True, metavar="MODEL", help="checkpoints to compare")
    models.add_argument("--names", nargs="*", help="how they are called in the figure; default: the folders' names")
    data = data_group(parser)
    data.add_argument("--forget", required=True, help="the forget set")
    data.add_argument("--test", help="samples that no model has seen")
    grid = parser.add_argument_group("landscape")
    grid.add_argument("--points", type=int, default=15, help="grid points per dimension (odd)")
    grid.add_argument("--reach", type=float, default=1.0, help="how far from the weights, in units of the filters")
    grid.add_argument("--samples", type=int, default=512, help="samples of each set behind every loss")
    grid.add_argument("--rho", type=float, default=0.1, help="radius of the SAM sharpness")
    run_group(parser, "landscape")


def run(options: argparse.Namespace) -> None:
    refuse_finished(options, "landscape.json")
    names = options.names or [os.path.basename(os.path.normpath(path)) for path in options.models]
    if len(names) != len(options.models) or len(set(names)) < len(names):
        raise ValueError(f"--names {names}: give each of the {len(options.models)} models a name of its own.")
    options.model = options.models[0]
    sets = {name: data_of(options, getattr(options, name)) for name in ("forget", "test") if getattr(options, name)}
    found = compare_landscapes(
        {name: model_of(options, path) for name, path in zip(names, options.models, strict=True)},
        sets,
        points=options.points,
        reach=options.reach,
        samples=options.samples,
        sharpness=SAM(rho=options.rho),
        batch_size=options.batch_size,
        seed=options.seed,
        collator=collator_for(next(iter(sets.values())), options.model),
    )
    os.makedirs(options.output_dir, exist_ok=True)
    with open(path := os.path.join(options.output_dir, "landscape.json"), "w") as file:
        json.dump(numbers := landscape_numbers(found), file, allow_nan=False)
    paths = draw_landscapes(found, options.output_dir)
    keys = ("centre", "rise", "variability", "slope", "sharpness", "top_eigenvalue", "eigenvector_residual")
    for name, splits in numbers.items():
        for split, values in splits.items():
            print(f"{name}, {split} set: " + ", ".join(f"{key} {_shown(values[key])}" for key in keys))
    print("written: " + ", ".join([*paths, path]))


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
