"""The Hub, as unlearned models need it: uploads that say what went wrong, and a history without the old weights.

A repository on the Hub keeps everything that was ever pushed to it. Pushing an unlearned model over the original one
therefore leaves the original, with what it remembers, one `revision=` away. `remains` tells what a repository still
holds, `erase` takes it away.
"""

import contextlib
import json
import os
import posixpath
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import huggingface_hub
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import LocalTokenNotFoundError
from huggingface_hub.hf_api import LFSFileInfo, RepoFile
from transformers.trainer import TRAINER_STATE_NAME

from .publishable import WEIGHTS, fits, is_model, shareable_files
from .shareable import without_paths


class PushError(RuntimeError):
    """An upload to the Hub did not happen, or not wholly. Nothing is lost on this machine."""


def check_folder(folder: str) -> None:
    """Raise ValueError unless a folder holds a saved model that others could load."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    if not any(map(is_model, names)):
        raise ValueError(f"folder={folder!r}: there is no saved model in it. Name the output_dir of a finished run.")
    if "adapter_config.json" in names:
        with open(os.path.join(folder, "adapter_config.json"), encoding="utf-8") as file:
            check_base(json.load(file).get("base_model_name_or_path"))


def check_base(name: str | None) -> None:
    """Raise ValueError for an adapter whose base model is a folder of this machine."""
    if name and (os.path.isabs(name) or os.path.isdir(name)):
        raise ValueError(
            f"base_model_name_or_path={name!r} of the adapter is a folder of this machine: nobody else could load the "
            "adapter, and the path would be published. Push the base model, and load it from the Hub before unlearning."
        )


def _explained(error: Exception, repo: str, folder: str | None) -> str:
    kept = "" if folder is None else f" The model is whole in {folder}; push again when this is mended."
    chain = [error]  # huggingface_hub wraps what happened to a file in an error of its own
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    cause = next((e for e in chain if getattr(e, "response", None) is not None), chain[-1])
    status = getattr(getattr(cause, "response", None), "status_code", None)
    endpoint = huggingface_hub.constants.ENDPOINT
    said = " ".join(str(getattr(cause, "server_message", None) or next(iter(str(cause).splitlines()), "")).split())
    if status == 401 or isinstance(error, LocalTokenNotFoundError):
        return (
            f"{repo}: {endpoint} does not accept the token (401: {said}). Log in with `hf auth login`, set HF_TOKEN, "
            f"or pass a token.{kept}"
        )
    if status == 403:
        return (
            f"{repo}: the token may not write there (403: {said}). Use a token with write access, or a repository "
            f"under your own name.{kept}"
        )
    if status in (409, 412):
        return (
            f"{repo}: it was changed at the same time, or is of another kind ({status}: {said}). Look at it, then "
            f"push again.{kept}"
        )
    if status is not None:
        return f"{repo}: {endpoint} answered {status} ({said}).{kept}"
    if not isinstance(cause, OSError) and not type(cause).__module__.startswith(("http", "hf_xet")):
        return f"{repo}: the upload failed ({type(cause).__name__}: {said}).{kept}"
    return (
        f"{repo}: the connection to {endpoint} broke off ({type(cause).__name__}: {said}). Files that arrived are not "
        f"sent again.{kept}"
    )


@contextlib.contextmanager
def explained(repo: str, folder: str | None = None) -> Iterator[None]:
    """Turn what goes wrong with the Hub inside the block into a `PushError` that says what to do."""
    try:
        yield
    except Exception as error:
        frames = traceback.walk_tb(error.__traceback__)
        of_hub = any(frame.f_globals.get("__name__", "").startswith("huggingface_hub.") for frame, _ in frames)
        if not of_hub or isinstance(error, ValueError | TypeError | PushError):
            raise
        raise PushError(_explained(error, repo, folder)) from error


def make_repo(repo: str, *, private: bool | None = None, token: str | None = None, folder: str | None = None) -> str:
    """Make a repository where there is none; return its whole name. repo: "name" or "owner/name". folder: where the
    model lies meanwhile, for the error. Raises PushError."""
    with explained(repo, folder):
        return HfApi(token=token).create_repo(repo, private=private, exist_ok=True).repo_id


def push_folder(
    folder: str,
    repo: str,
    *,
    message: str = "Upload unlearned model",
    revision: str | None = None,
    token: str | None = None,
    training_state: bool = False,
    replace: bool = False,
    path_in_repo: str | None = None,
    also: Sequence[str] = (),
) -> CommitInfo:
    """Upload a saved model with its card and report; what else is in the folder stays here (see `shareable_files`).

    folder: what `save_model` and `create_model_card` wrote. repo: as `make_repo` returns it. revision: a branch, made
    where there is none. training_state: also upload checkpoints, optimizer state and masks, which hold traces of
    the forget set. also: names of further files. replace: delete weight files from the branch that are not uploaded,
    in the same commit.

    Raises ValueError for a folder without a model, PushError if the Hub or the connection does not play along.
    """
    check_folder(folder)
    api = HfApi(token=token)
    with explained(repo, folder):
        if revision not in (None, "main"):
            api.create_branch(repo, branch=revision, exist_ok=True)
        names = shareable_files(folder, training_state, also)
        place = path_in_repo or ""
        added = {posixpath.join(place, name.replace(os.sep, "/")): os.path.join(folder, name) for name in names}
        operations = [CommitOperationAdd(name, _shareable_content(path)) for name, path in added.items()]
        if replace:
            there = api.list_repo_files(repo, revision=revision)
            operations += [CommitOperationDelete(n) for n in there if fits(n, WEIGHTS) and n not in added]
        return api.create_commit(repo, operations, commit_message=message, revision=revision)


def _shareable_content(path: str) -> str | bytes:
    """The file, or what may be known of it: a trainer's state names folders of the machine that it ran on."""
    if os.path.basename(path) != TRAINER_STATE_NAME:
        return path
    with open(path, encoding="utf-8") as file:
        state = json.load(file)
    best = state.get("best_model_checkpoint")
    state = without_paths(state)
    if best:  # a checkpoint beside this one
        state["best_model_checkpoint"] = os.path.basename(os.path.normpath(best))
    return (json.dumps(state, indent=2, sort_keys=True) + "\n").encode()


@dataclass(frozen=True)
class Remains:
    """What a repository holds, and what of it lies beside the files of its main branch.

    current: (name, bytes) of the large files of the main branch. commits: its older commits. files: (name, bytes, oid)
    of large files that the branch no longer has. refs: other branches, tags and pull requests, which keep commits of
    their own.
    """

    current: tuple[tuple[str, int], ...]
    commits: tuple[str, ...]
    files: tuple[tuple[str, int, str], ...]
    refs: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.commits or self.files or self.refs)

    def describe(self, repo: str) -> str:
        size = sum(bytes_ for _, bytes_, _ in self.files)
        lines = [f"The main branch of {repo} has"]
        lines += [f"  {name} ({bytes_ / 1e6:,.1f} MB)" for name, bytes_ in self.current] or ["  no large files"]
        lines.append("and the repository keeps beside it")
        lines.append(f"  {len(self.commits)} older commits" + "".join(f"\n    {title}" for title in self.commits[:5]))
        lines.append(f"  {len(self.files)} large files ({size / 1e6:,.1f} MB) that only older commits have")
        lines += [f"    {name} ({bytes_ / 1e6:,.1f} MB)" for name, bytes_, _ in self.files[:5]]
        if self.refs:
            lines.append(f"  other branches, tags and pull requests: {', '.join(self.refs)}")
        return "\n".join(lines)


def remains(repo: str, token: str | None = None) -> Remains:
    """Look what a repository still holds of earlier pushes. Raises PushError."""
    api = HfApi(token=token)
    with explained(repo):
        commits = api.list_repo_commits(repo)
        current = _large_files(api, repo)
        files = _beside(api, repo, current)
        refs = _other_refs(api, repo)
    return Remains(
        tuple((entry.path, entry.size) for entry in current),
        tuple(commit.title for commit in commits[1:]),
        tuple((file.filename, file.size, file.oid) for file in files),
        tuple(refs),
    )


def erase(repo: str, token: str | None = None) -> None:
    """Squash the main branch to one commit and delete the large files that no branch, tag or pull request has any more.
    There is no way back. What other references hold is kept: see `Remains.refs`.

    Raises PushError; calling it again goes on.
    """
    api = HfApi(token=token)
    with explained(repo):
        api.super_squash_history(repo, commit_message="Unlearned model; the history before it was removed")
        revisions = [None, *_other_refs(api, repo)]
        held = [entry for revision in revisions for entry in _large_files(api, repo, revision)]
        if stale := _beside(api, repo, held):
            api.permanently_delete_lfs_files(repo, stale)


def _large_files(api: HfApi, repo: str, revision: str | None = None) -> list[RepoFile]:
    entries = api.list_repo_tree(repo, recursive=True, revision=revision)
    return [entry for entry in entries if getattr(entry, "lfs", None)]


def _beside(api: HfApi, repo: str, held: Sequence[RepoFile]) -> list[LFSFileInfo]:
    """Large files that were ever pushed and are none of those."""
    hashes = {entry.lfs.sha256 for entry in held}
    return [file for file in api.list_lfs_files(repo) if not {file.oid, file.file_oid} & hashes]


def _other_refs(api: HfApi, repo: str) -> list[str]:
    refs = api.list_repo_refs(repo, include_pull_requests=True)
    names = [ref.ref for ref in (*refs.branches, *refs.tags, *(refs.pull_requests or []), *refs.converts)]
    return [name for name in names if name != "refs/heads/main"]
