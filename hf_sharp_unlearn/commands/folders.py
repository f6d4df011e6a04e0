"""The folder that a command writes: tried before any work, locked while the command works in it, let go of afterwards.

The lock is the kernel's (flock) on `_lock` in the folder, which names the process: it ends with its process, however
that ends, and works over NFS between machines. Where a file system has no locks, the process that the file names is
looked for, on this machine only. The processes of one launch share the lock of the first one.
"""

import contextlib
import errno
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil

from ..data import leave_cache, use_cache_of
from ..run import remove_torn
from ..runtime import disk_is_full, free_bytes
from .parsing import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = "_lock"  # "_": stays here when the folder is pushed
_TRIAL = "_trial"
_BLOCK = b"\0" * 4096


@dataclass
class _Claim:
    """A folder of this process. lock: descriptor of its file. made: folders that were not there before."""

    folder: str
    cache: str
    lock: int | None = None
    made: list[str] = field(default_factory=list)

    def release(self, failed: bool) -> None:
        leave_cache(self.cache, remove=self.lock is not None)
        if self.lock is None:
            return
        with contextlib.suppress(OSError):
            os.remove(os.path.join(self.folder, LOCK))
        os.close(self.lock)
        if failed:  # nothing was begun: leave no trace
            with contextlib.suppress(OSError):
                for path in self.made:
                    os.rmdir(path)


_claims: list[_Claim] = []


def _close_in_child() -> None:
    """A forked process would hold the lock for as long as it lives."""
    for claim in _claims:
        if claim.lock is not None:
            os.close(claim.lock)
    _claims.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def claim(folder: str, option: str = "--output_dir") -> None:
    """Make the folder, try to write there, and lock it until the command ends (see `letting_go`).

    option: by which the user named it. Raises ValueError for a folder that cannot be written or is in use.
    """
    if not folder:
        raise UsageError(f"{option} is empty: name a folder.")
    if int(os.environ.get("RANK") or 0) != 0:  # the first process of the launch holds it
        _claims.append(_Claim(folder, use_cache_of(folder)))
        return
    made = _missing(folder)
    lock = None
    try:
        os.makedirs(folder, exist_ok=True)
        with open(trial := os.path.join(folder, f"{_TRIAL}.{os.getpid()}"), "wb") as file:
            file.write(_BLOCK)
        os.remove(trial)
        lock = _locked(os.path.join(folder, LOCK), folder, option)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.remove(os.path.join(folder, f"{_TRIAL}.{os.getpid()}"))
        for path in made:
            with contextlib.suppress(OSError):
                os.rmdir(path)
        raise ValueError(f"{option} {folder}: {_obstacle(error, folder)}") from error
    _claims.append(_Claim(folder, use_cache_of(folder), lock, made))


def refuse_busy(folder: str, option: str) -> None:
    """Raise ValueError if a command works in a folder that is about to be read."""
    if os.path.isfile(path := os.path.join(folder, LOCK)) and fcntl is not None:
        with open(path, "rb") as file:
            if _held_by_another(file.fileno()):
                raise ValueError(_in_use(f"{option} {folder}", _content(file.fileno(), wait=True)))


@contextlib.contextmanager
def letting_go() -> Iterator[None]:
    """Around a command: in the end its folders are free again and copies of the data are gone. What a full disk has
    left half written is removed, and the error names the folder and the room there is."""
    before = len(_claims)
    failed = True
    try:
        yield
        failed = False
    except Exception as error:
        mine = [claim.folder for claim in _claims[before:] if claim.lock is not None]
        full = next((folder for folder in mine if disk_is_full(error, folder)), None)
        if full is None:
            raise
        free = free_bytes(full)
        removed = remove_torn(full)
        also = f" Removed, because half written: {', '.join(removed)}." if removed else ""
        raise OSError(
            errno.ENOSPC,
            f"No space left: the disk of {full} has {free:,} bytes free, and a file could not be written to its end."
            f"{also} Make room and run the command again, or name a folder on another disk",
        ) from error
    finally:
        for claim in reversed(_claims[before:]):
            claim.release(failed)
        del _claims[before:]


def _missing(folder: str) -> list[str]:
    """The folder and those above it that are not there, the deepest first."""
    found, path = [], os.path.abspath(folder)
    while not os.path.lexists(path):
        found.append(path)
        path = os.path.dirname(path)
    return found


def _obstacle(error: OSError, folder: str) -> str:
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return "it, or a part of its path, is a file. Name a folder."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left, its disk has {free_bytes(folder):,} bytes free. Make room, or name another folder."
    what = {errno.EROFS: "its file system is read-only", errno.EACCES: "this user may not write there",
            errno.EPERM: "this user may not write there", errno.ENAMETOOLONG: "its name is too long"}  # fmt: skip
    return f"nothing can be written there, {what.get(error.errno, error.strerror)}. Name another folder."


def _locked(path: str, folder: str, option: str) -> int:
    """The descriptor of a lock file that is ours."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            held = _held_by_another(lock)
            before = _content(lock, wait=held is True)
            alive = held if held is not None else _lives(before)
            if alive:
                also = "" if held else f" If it is no longer there, remove {path}."
                raise ValueError(_in_use(f"{option} {folder}", before) + also)
            if not os.path.exists(path) or os.stat(path).st_ino != os.fstat(lock).st_ino:
                os.close(lock)  # it was let go of, and removed, since we have opened it
                continue
        except BaseException:
            os.close(lock)
            raise
        if before:
            print(
                f"taking over {folder}: process {before.get('pid')} on {before.get('host')} has ended without letting "
                "go of it",
                flush=True,
            )
        who = {"pid": os.getpid(), "host": platform.node(), "command": _command(), "since": time.strftime("%F %T")}
        os.ftruncate(lock, 0)
        os.pwrite(lock, json.dumps(who).encode(), 0)
        return lock


def _in_use(what: str, who: dict) -> str:
    return (
        f"{what} is in use: process {who.get('pid', '(unknown)')} on {who.get('host', 'this or another machine')} "
        f"works in it ({who.get('command', 'a command')}, since {who.get('since', 'just now')}). Wait until it has "
        "ended, or name another folder."
    )


def _held_by_another(lock: int) -> bool | None:
    """None where the file system cannot tell."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


def _content(lock: int, wait: bool) -> dict:
    """Who has written it; {} for nobody. wait: its owner may be about to write."""
    for _ in range(20 if wait else 1):
        with contextlib.suppress(ValueError):
            found = json.loads(os.pread(lock, 4096, 0))
            if isinstance(found, dict):
                return found
        time.sleep(0.05 if wait else 0)
    return {}


def _lives(who: dict) -> bool:
    """Without a lock of the kernel's: a process on another machine counts as living."""
    if not who:
        return False
    return who.get("host") != platform.node() or who.get("pid") != os.getpid() and psutil.pid_exists(who.get("pid", 0))


def _command() -> str:
    return " ".join(["sharp-unlearn", *sys.argv[1:2]])
