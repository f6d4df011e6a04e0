"""`sharp-unlearn benchmark`: `benchmarks/kernel_part.py` and `benchmarks/training.py` in one go."""

import argparse
from collections.abc import Sequence

from ..benchmarks import kernel_part, training
from ..benchmarks.parts.options import add_common_options, results_folder
from .folders import claim, letting_go
from .parsing import Help, parsed


@letting_go()
def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="sharp-unlearn benchmark",
        description="Time the kernel part of a Sharp MinMax step with every provider, and whole training steps; append "
        "the rows to CSV files and draw a plot. About 15 minutes on 2 CPU cores.",
        formatter_class=Help,
    )
    parser.add_argument("--part", choices=("all", "kernels", "training"), default="all", help="what to time")
    add_common_options(parser, rounds=9)
    kernel_part.add_options(parser.add_argument_group("kernel part"))
    training.add_options(parser.add_argument_group("training steps"))
    (options,) = parsed(parser, argv)
    claim(options.output_dir or results_folder(None), "--output-dir")
    if options.part != "training":
        kernel_part.run(options)
    if options.part != "kernels":
        training.run(options)
