"""How do the methods compare? Every one with every sharpness, on images, against a retrained model.

    python -m hf_sharp_unlearn.benchmarks.vision --config mini --data cifar100-mini --scores cifar100_cscores_train.npy
    python -m hf_sharp_unlearn.benchmarks.vision --config cifar100 --data uoft-cs/cifar100 --scores ...   one GPU

A seed's original model is trained on all training data, its reference on the retain set alone, with the same recipe.
Two forget sets of 6 %: the hardest by score, and random ones. Every configuration is tuned on seed 100 of the hard set,
by the absolute Tug-of-War, over its six grid points; seeds 0, 1, 2 of both sets are reported with what won there.

Every finished run is a row in vision_CONFIG.csv; a run that is there is not repeated, so the command goes on where it
was stopped. `--minutes` ends a slice. When all rows are there, tables and a plot are written beside them.
"""

import argparse
import contextlib
import os

from hf_sharp_unlearn.benchmarks.comparison import stages, tables
from hf_sharp_unlearn.benchmarks.comparison.configs import CONFIGS
from hf_sharp_unlearn.benchmarks.parts.options import parser_of, results_folder


def add_options(parser: argparse.ArgumentParser) -> None:
    stages.add_options(parser)
    parser.add_argument("--only", nargs="+", default=None, metavar="NAME", help="configurations; default: all")


def run(options: argparse.Namespace) -> bool:
    """Run what is missing. Returns True when every row is there and the tables are written."""
    unknown = sorted(set(options.only or ()) - set(CONFIGS))
    if unknown:
        raise ValueError(f"--only {unknown}: not a configuration. There are {sorted(CONFIGS)}.")
    names = options.only or list(CONFIGS)
    folder = results_folder(options.output_dir)
    rows = stages.complete(os.path.join(folder, f"vision_{options.config}.csv"), names, options)
    if rows is None:
        return False
    stem = os.path.join(folder, f"vision_{options.config}_{rows[0]['data']}")
    tables.write(rows, names, stem)
    tables.draw(rows, names, f"{stem}.png")
    return True


def main(argv: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    add_options(parser)
    options = parser.parse_args(argv)
    with contextlib.suppress(KeyboardInterrupt):
        try:
            run(options)
        except ValueError as error:
            raise SystemExit(f"vision: {error}") from error


if __name__ == "__main__":
    main()
