"""The command `sharp-unlearn` (also `python -m hf_sharp_unlearn`)."""

import argparse
import sys

from .benchmarks.step import add_options as add_benchmark_options
from .benchmarks.step import positive
from .benchmarks.step import run as run_benchmark


def build_parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="print the traceback of an error")
    parser = argparse.ArgumentParser(prog="sharp-unlearn", description="Machine unlearning for transformers models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        parents=[shared],
        help="unlearn wrong labels from a small ResNet, about a minute on 2 CPU cores",
        description="Train a timm ResNet on scikit-learn's digits, 5 %% of them with a wrong label, retrain it without "
        "them, unlearn them with three methods and print one table.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--seeds", type=positive, default=1, help="number of runs, seeds 0, 1, ...; more print a spread")
    demo.add_argument("--output-dir", default="demo_output", help="where table, plot and unlearned model are written")
    benchmark = commands.add_parser(
        "benchmark",
        parents=[shared],
        help="time the kernels and whole training steps, fused against unfused",
        description="Time the kernel part of a Sharp MinMax step with every provider, and whole training steps; append "
        "the rows to CSV files and draw a plot. About 15 minutes on 2 CPU cores.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_benchmark_options(benchmark)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    arguments = build_parser().parse_args(argv)
    try:
        # timm, scikit-learn and matplotlib are needed by these commands only
        if arguments.command == "demo":
            from .demo import run_demo

            run_demo(seeds=arguments.seeds, output_dir=arguments.output_dir)
        else:
            run_benchmark(arguments)
    except KeyboardInterrupt:
        print("sharp-unlearn: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if arguments.debug:
            raise
        print(f"sharp-unlearn: {type(error).__name__}: {error} (--debug prints the traceback)", file=sys.stderr)
        return 1
    return 0
