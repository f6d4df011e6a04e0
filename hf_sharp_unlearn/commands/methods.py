"""`sharp-unlearn methods`: what there is, from the methods' own documentation."""

import argparse
import dataclasses
import inspect
import textwrap
from collections.abc import Sequence

from ..methods import METHODS


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="sharp-unlearn methods",
        description="List every method: its name, hyperparameters with their defaults, what it does and the settings "
        "that its authors, or others, have published. With a NAME: the whole description of one.",
    )
    parser.add_argument("name", nargs="?", choices=sorted(METHODS), metavar="NAME", help=", ".join(METHODS))
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    print(describe_methods(parser.parse_args(argv).name), flush=True)


def describe_methods(name: str | None = None) -> str:
    """The text of `sharp-unlearn methods`."""
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
