"""`sharp-unlearn benchmark`: see `benchmarks/step.py`."""

import argparse
from collections.abc import Sequence

from ..benchmarks.step import add_options, run
from .parsing import parsed


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="sharp-unlearn benchmark",
        description="Time the kernel part of a Sharp MinMax step with every provider, and whole training steps; append "
        "the rows to CSV files and draw a plot. About 15 minutes on 2 CPU cores.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_options(parser)
    run(*parsed(parser, argv))
