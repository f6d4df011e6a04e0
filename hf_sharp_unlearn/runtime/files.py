"""Files that are there whole or not at all."""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def written_whole(path: str) -> Iterator[str]:
    """Gives the name under which a file is to be written, and renames it to `path` when the block ends.

    Who is interrupted leaves the old file as it was. The name has the process's number in it: two processes that write
    the same file do not write into each other.
    """
    unfinished = f"{path}.{os.getpid()}.tmp"
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        if os.path.exists(unfinished):
            os.remove(unfinished)


def write_text(path: str, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with written_whole(path) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
        file.write(text)
