"""What an interrupted `unlearn` goes on from, and that it is the same run: `_options.json` in the output folder holds
the model's fingerprint, the data's, and the options that a step depends on."""

import json
import os
import shutil
from typing import Any

from ..arguments import UnlearningArguments
from ..run import checkpoints, fault_of, last_whole
from ..runtime import write_text
from ..sharing import REPORT_FOLDER

OPTIONS = "_options.json"  # "_": stays here when the folder is pushed
_CALLED = {"weights": "weights: the files of --model are others than they were"}


def checkpoint_of(
    args: UnlearningArguments, overwrite: bool, options: dict[str, Any], files: list[str], done: str
) -> str | None:
    """The checkpoint to go on from, if this run was interrupted. With `overwrite` its checkpoints are removed.

    files: those of a whole checkpoint, see `run.needed`. done: name of the file that says that a run is finished.
    Raises ValueError for a folder that something else has filled, or that a run with other options has.
    """
    options = json.loads(json.dumps(options))
    if args.resume_from_checkpoint and args.resume_from_checkpoint.lower() not in ("true", "false"):
        return _named(args, options, files)
    folder, path, first = args.output_dir, os.path.join(args.output_dir, OPTIONS), args.process_index == 0
    names = os.listdir(folder) if os.path.isdir(folder) else []
    weights = any(name.endswith((".safetensors", ".bin")) for name in names)
    if not os.path.exists(path) and (checkpoints(folder) or weights):
        raise ValueError(
            f"--output_dir {folder} holds a model or checkpoints that this command has not made: name another folder."
        )
    if not overwrite:
        found, torn = last_whole(folder, files)
        if found:
            _check_options(found, path, options)
        if first:
            _tell(found, torn)
            for cut in torn:
                shutil.rmtree(cut)
        if found:
            return found
    if first:
        for name in checkpoints(folder):
            shutil.rmtree(name)
        shutil.rmtree(os.path.join(folder, REPORT_FOLDER), ignore_errors=True)  # it is of other weights
        os.makedirs(folder, exist_ok=True)
        if os.path.exists(finished := os.path.join(folder, done)):
            os.remove(finished)
        write_text(path, json.dumps(options))
    return None


def _named(args: UnlearningArguments, options: dict[str, Any], files: list[str]) -> str:
    """The checkpoint of --resume_from_checkpoint."""
    checkpoint = args.resume_from_checkpoint
    if not os.path.isdir(checkpoint):
        raise ValueError(f"--resume_from_checkpoint {checkpoint}: there is no such folder.")
    fault = fault_of(checkpoint, files)
    if fault is not None:
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint} is not whole: {fault}. Name another one, or leave the option out: "
            "the last whole one in --output_dir is found."
        )
    path = os.path.join(os.path.dirname(os.path.abspath(checkpoint)), OPTIONS)
    if not os.path.exists(path):
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint}: there is no {OPTIONS} beside it, so nobody can tell whether "
            "model, data and options are those that it was made with. Name a checkpoint that this command has made."
        )
    _check_options(checkpoint, path, options)
    own = os.path.join(args.output_dir, OPTIONS)
    if not os.path.exists(own):
        if args.process_index == 0:
            write_text(own, json.dumps(options))
    else:
        _check_options(args.output_dir, own, options)
    return checkpoint


def _check_options(what: str, path: str, options: dict[str, Any]) -> None:
    try:
        with open(path, encoding="utf-8") as file:
            before = json.load(file)
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be read ({error}), so nobody can tell whether {what} is of this model, data and options: "
            "pass --overwrite to begin anew, or another --output_dir."
        ) from error
    if before != options:
        others = [_CALLED.get(name, name) for name in options if before.get(name) != options[name]]
        raise ValueError(
            f"{what} was made with other options ({', '.join(others)}): pass --overwrite to begin anew, or "
            "another --output_dir."
        )


def _tell(found: str | None, torn: dict[str, str]) -> None:
    for path, reason in torn.items():
        print(f"{path} is not whole ({reason}), perhaps because a run was killed or a disk filled: removed", flush=True)
    if found:
        print(f"going on from {found}", flush=True)
    elif torn:
        print("no checkpoint is whole: the run begins anew", flush=True)
