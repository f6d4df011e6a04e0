"""The command `sharp-unlearn` (also `python -m hf_sharp_unlearn`)."""

import argparse
import sys


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number >= 1")
    return value


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
    demo.add_argument("--seeds", type=_positive, default=1, help="number of runs, seeds 0, 1, ...; more print a spread")
    demo.add_argument("--output-dir", default="demo_output", help="where table, plot and unlearned model are written")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    arguments = build_parser().parse_args(argv)
    try:
        from .demo import run_demo  # timm, scikit-learn and matplotlib are needed by the demo only

        run_demo(seeds=arguments.seeds, output_dir=arguments.output_dir)
    except KeyboardInterrupt:
        print("sharp-unlearn: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if arguments.debug:
            raise
        print(f"sharp-unlearn: {type(error).__name__}: {error} (--debug prints the traceback)", file=sys.stderr)
        return 1
    return 0
