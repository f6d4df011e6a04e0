"""Checkpoints of an output folder: which are whole, which one a run goes on from, which are removed.

A run may have been killed, or a disk filled, while it wrote one. Whole means: every file that a resume reads is there
and reaches its end, by the tables that safetensors and zip files hold. Only folders called `checkpoint-NUMBER` are
checkpoints; what else lies beside them is the user's.
"""

import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Sequence

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..methods import Method
from ..step import Partition, Teacher

logger = logging.getLogger(__name__)

_NAME = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
_WEIGHTS = ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "adapter_model.bin")
_STATE = ("optimizer.pt", "scheduler.pt")


def checkpoints(folder: str) -> list[str]:
    """Paths of the checkpoints in a folder, the latest first."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    found = [(int(match[1]), name) for name in names if (match := _NAME.fullmatch(name))]
    paths = [os.path.join(folder, name) for _, name in sorted(found, reverse=True)]
    return [path for path in paths if os.path.isdir(path) and not os.path.islink(path)]


def needed(method: Method, save_only_model: bool, processes: int) -> list[str]:
    """Files that a resume reads beside weights and trainer state."""
    own = [Partition.file_name] * (method.fraction is not None) + [Teacher.file_name] * method.teacher
    if save_only_model:
        return own
    ranks = ["rng_state.pth"] if processes == 1 else [f"rng_state_{rank}.pth" for rank in range(processes)]
    return [*own, *_STATE, *ranks]


def fault_of(checkpoint: str, files: Sequence[str] = ()) -> str | None:
    """Why a checkpoint is not whole; None if it is. files: those that must be there, by `needed`."""
    there = set(os.listdir(checkpoint))
    weights = [name for name in _WEIGHTS if name in there]
    for index in (name for name in there if name.endswith(".index.json")):
        shards = _content(os.path.join(checkpoint, index))
        if shards is None:
            return f"{index} is cut off"
        weights += sorted(set(shards.get("weight_map", {}).values()))
    nested = [os.path.join(name, file) for name in there for file in _WEIGHTS[1::2]
              if os.path.isfile(os.path.join(checkpoint, name, file))]  # fmt: skip
    if not weights and not nested:
        return "it has no weights"
    others = [name for name in there if name.endswith((".pt", ".pth", ".safetensors"))]
    for name in dict.fromkeys([*weights, *nested, *files, TRAINER_STATE_NAME, *sorted(others)]):
        path = os.path.join(checkpoint, name)
        if not os.path.isfile(path):
            return f"it has no {name}"
        if not reaches_its_end(path):
            return f"{name} is cut off"
    return None


def last_whole(folder: str, files: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """The last whole checkpoint of a folder, and why each later one is not: {path: reason}."""
    torn: dict[str, str] = {}
    for path in checkpoints(folder):
        fault = fault_of(path, files)
        if fault is None:
            return path, torn
        torn[path] = fault
    return None, torn


def to_resume(wanted: str | bool | None, folder: str, files: Sequence[str]) -> str | bool | None:
    """What to resume from: True becomes the last whole checkpoint of the folder. Raises ValueError where checkpoints
    are there but none is whole, and for a named one with a file that is cut off."""
    if wanted is True and checkpoints(folder):
        found, torn = last_whole(folder, files)
        shown = "; ".join(f"{path}: {reason}" for path, reason in torn.items())
        if found is None:
            raise ValueError(f"resume_from_checkpoint=True: no checkpoint in {folder!r} is whole ({shown}).")
        if torn:
            logger.warning("Going on from %s: later checkpoints are not whole (%s).", found, shown)
        return found
    if isinstance(wanted, str) and os.path.isdir(wanted):
        fault = fault_of(wanted)
        if fault is not None and fault.endswith("cut off"):
            raise ValueError(f"resume_from_checkpoint={wanted!r} is not whole: {fault}. Name another checkpoint.")
    return wanted


def rotate(folder: str, latest: int | None, limit: int | None, best: str | None) -> None:
    """Remove the oldest checkpoints beyond `limit`, neither that of the step `latest` nor the best. Trainer takes every
    folder called checkpoint-* for one, a `checkpoint-best` of the user's too."""
    if limit is None or limit <= 0:
        return
    kept = {os.path.realpath(best)} if best else set()
    if latest is not None:
        kept.add(os.path.realpath(os.path.join(folder, f"{PREFIX_CHECKPOINT_DIR}-{latest}")))
    found = sorted(checkpoints(folder), key=lambda path: (os.path.getmtime(path), int(path.rpartition("-")[2])))
    spare = [path for path in found if os.path.realpath(path) not in kept]
    for path in spare[: max(len(found) - max(limit, len(kept)), 0)]:
        shutil.rmtree(path, ignore_errors=True)


def remove_torn(folder: str) -> list[str]:
    """Remove checkpoints and weights that a full disk has left half written. Returns what was removed."""
    torn = [path for path in checkpoints(folder) if fault_of(path) is not None]
    for path in torn:
        shutil.rmtree(path, ignore_errors=True)
    names = os.listdir(folder) if os.path.isdir(folder) else []
    for path in (os.path.join(folder, name) for name in names if name.endswith(".safetensors")):
        if not reaches_its_end(path):
            os.remove(path)
            torn.append(path)
    return torn


def reaches_its_end(path: str) -> bool:
    """False for a file that is cut off: .safetensors, .json, and what torch and numpy write as a zip file."""
    if path.endswith(".safetensors"):
        try:
            with safe_open(path, framework="pt"):
                return True
        except (SafetensorError, OSError):
            return False
    if path.endswith(".json"):
        return _content(path) is not None
    if path.endswith(".npy"):
        return os.path.getsize(path) > 0
    try:
        with zipfile.ZipFile(path) as file:  # its table of contents stands at the end
            return bool(file.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _content(path: str) -> dict | None:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
