"""Options that all benchmarks have."""

import argparse
import os

RESULTS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "results")


class Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """A module's docstring as it stands, and the defaults where there are some."""

    def _get_help_string(self, action: argparse.Action) -> str:
        return action.help if action.default is None else super()._get_help_string(action)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number >= 1")
    return value


def parser_of(doc: str, rounds: int | None = None) -> argparse.ArgumentParser:
    """A parser with `add_common_options`. doc: the docstring of the benchmark."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=Help)
    add_common_options(parser, rounds)
    return parser


def add_common_options(parser: argparse.ArgumentParser, rounds: int | None = None) -> None:
    """--output-dir, and --rounds for benchmarks that have rounds. rounds: how many by default."""
    parser.add_argument("--output-dir", help="folder of the results; default: benchmarks/results in a checkout")
    if rounds is not None:
        parser.add_argument("--rounds", type=positive, default=rounds,
                            help="counted rounds, one more is a warm-up; all ways run in each")  # fmt: skip


def results_folder(chosen: str | None) -> str:
    """The folder of --output-dir, made. Beside an installed package there is none: benchmark_output here."""
    folder = chosen or (RESULTS if os.path.isdir(RESULTS) else "benchmark_output")
    os.makedirs(folder, exist_ok=True)
    return folder
