"""Progress bars that can be read in a log file: on a terminal a bar, elsewhere a line every few seconds."""

import sys
import time
from typing import Any, TextIO

from tqdm.auto import tqdm

SECONDS = 10.0  # between two lines


class _Lines:
    """A file for tqdm that turns its redrawn line into lines of their own, not too many of them."""

    def __init__(self, file: TextIO):
        self._file, self._last = file, -SECONDS

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        now = time.monotonic()
        if text and (now - self._last >= SECONDS or "100%" in text):
            self._last = now
            self._file.write(text + "\n")

    def flush(self) -> None:
        self._file.flush()


def draws_bars() -> bool:
    """True where a line can be drawn over again: on a terminal and in a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def progress_bar(iterable: Any = None, **options: Any) -> tqdm:
    """`tqdm(iterable, **options)`, which writes lines where it cannot draw."""
    if not draws_bars():
        options |= {"file": _Lines(sys.stderr), "mininterval": SECONDS, "ncols": 100, "ascii": True}
    elif "ncols" not in options:
        options["dynamic_ncols"] = True
    return tqdm(iterable, **options)
