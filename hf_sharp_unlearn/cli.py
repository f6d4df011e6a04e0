"""The command `sharp-unlearn` (also `python -m hf_sharp_unlearn`)."""

import argparse
import dataclasses
import inspect
import os
import sys
import textwrap

from .benchmarks.step import add_options as add_benchmark_options
from .benchmarks.step import positive
from .benchmarks.step import run as run_benchmark
from .commands import COMMANDS
from .methods import METHODS


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
        "them, unlearn them with three methods, print one table and write a report on Sharp MinMax.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--seeds", type=positive, default=1, help="number of runs, seeds 0, 1, ...; more print a spread")
    demo.add_argument("--output-dir", default="demo_output", help="where table, plots, report and models are written")
    for command in COMMANDS.values():
        command.add(commands, shared)
    benchmark = commands.add_parser(
        "benchmark",
        parents=[shared],
        help="time the kernels and whole training steps, fused against unfused",
        description="Time the kernel part of a Sharp MinMax step with every provider, and whole training steps; append "
        "the rows to CSV files and draw a plot. About 15 minutes on 2 CPU cores.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_benchmark_options(benchmark)
    methods = commands.add_parser(
        "methods",
        parents=[shared],
        help="list the unlearning methods, their settings and where these come from",
        description="List every method: its name, hyperparameters with their defaults, what it does and the settings "
        "that its authors, or others, have published. With a NAME: the whole description of one.",
    )
    methods.add_argument("name", nargs="?", choices=sorted(METHODS), metavar="NAME", help=", ".join(METHODS))
    return parser


def describe_methods(name: str | None = None) -> str:
    """The text of `sharp-unlearn methods`, from the methods' own documentation."""
    if name is not None:
        return f"{_signature(name)}\n\n{inspect.getmodule(METHODS[name]).__doc__.strip()}\n\n{METHODS[name].__doc__}"
    parts = []
    for method, cls in METHODS.items():
        text = inspect.getmodule(cls).__doc__
        settings = " ".join(text[text.index("Published settings:") :].split("\n\n")[0].split())
        indented = [textwrap.indent(textwrap.fill(part, 96), "    ") for part in (text.split("\n\n")[0], settings)]
        parts.append("\n".join([f"{method}\n    {_signature(method)}", *indented]))
    return "\n\n".join(parts)


def _signature(name: str) -> str:
    fields = [field for field in dataclasses.fields(METHODS[name]) if not field.kw_only]
    return f"{METHODS[name].__name__}({', '.join(f'{field.name}={field.default!r}' for field in fields)})"


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    arguments = build_parser().parse_args(argv)
    try:
        # timm, scikit-learn and matplotlib are needed by these commands only
        if arguments.command == "demo":
            from .demo import run_demo

            run_demo(seeds=arguments.seeds, output_dir=arguments.output_dir)
        elif arguments.command == "methods":
            print(describe_methods(arguments.name), flush=True)
        elif arguments.command == "benchmark":
            run_benchmark(arguments)
        else:
            COMMANDS[arguments.command].run(arguments)
    except KeyboardInterrupt:
        print("sharp-unlearn: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if arguments.debug:
            raise
        print(f"sharp-unlearn: {type(error).__name__}: {error} (--debug prints the traceback)", file=sys.stderr)
        return 1
    return 0
