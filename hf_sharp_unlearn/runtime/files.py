"""Files that are there whole or not at all."""

import contextlib
import errno
import os
import shutil
import traceback
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


def free_bytes(folder: str) -> int:
    """What this user may still write on the disk of a folder, or of the nearest one above that is there."""
    path = os.path.abspath(folder)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path).free


def disk_is_full(error: BaseException, folder: str) -> bool:
    """True if an error comes from a file that could not be written because a disk is full.

    Libraries that write in C++ and Rust lose the error's number: safetensors keeps its text, torch.save raises some
    RuntimeError of its stream. The latter counts where little is free.
    """
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        one = chain.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        text = str(one)
        if isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in text for words in ("No space left", "os error 28", "Disk quota exceeded", "os error 122")):
            return True
        frames = (frame for frame, _ in traceback.walk_tb(one.__traceback__))
        writes = any(
            "save" in f.f_code.co_name and f.f_globals.get("__name__") == "torch.serialization" for f in frames
        )
        if isinstance(one, RuntimeError) and writes and free_bytes(folder) < 64 << 20:
            return True
        chain += [one.__cause__, one.__context__]
    return False


@contextlib.contextmanager
def full_disk_named(folder: str) -> Iterator[None]:
    """An error inside the block that comes from a full disk becomes an OSError (ENOSPC) that names the folder and the
    room there is, whichever library raised it."""
    try:
        yield
    except Exception as error:
        if not disk_is_full(error, folder):
            raise
        free = free_bytes(folder)
        text = (
            f"No space left: the disk of {folder} has {free:,} bytes free, and a file could not be written to its end"
        )
        raise OSError(errno.ENOSPC, text) from error
