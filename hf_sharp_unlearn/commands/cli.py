"""The command `sharp-unlearn` (also `python -m hf_sharp_unlearn`)."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from . import COMMANDS
from .parsing import UsageError


def _overview() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="sharp-unlearn",
        description="Machine unlearning for transformers models.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(["commands:", *lines, "", "sharp-unlearn COMMAND --help tells the options of each."]),
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="see below")
    return parser


def _take_debug(argv: list[str]) -> bool:
    """Take --debug off the command line: the flag, not TrainingArguments' option of that name, which has a value."""
    for place, word in enumerate(argv):
        if word == "--debug" and (place + 1 == len(argv) or argv[place + 1].startswith("-")):
            del argv[place]
            return True
    return False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] not in COMMANDS:
        _overview().parse_args(argv[:1])
    debug = _take_debug(argv)
    rank = int(os.environ.get("RANK") or 0)
    try:
        # Each command is imported when it is used: timm, matplotlib and others are needed by some only.
        importlib.import_module(f"{__package__}.{argv[0]}").main(argv[1:])
    except KeyboardInterrupt:
        print("sharp-unlearn: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if debug:
            raise
        if rank == 0 or not isinstance(error, ValueError):  # input that cannot be used: all processes see the same
            where = "" if rank == 0 else f" (process {rank})"
            text = f"sharp-unlearn{where}: {type(error).__name__}: {error} (--debug prints the traceback)"
            print(" ".join(text.split()), file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0
