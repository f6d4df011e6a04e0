"""The Hub, as unlearned models need it: uploads that say what went wrong, and a history without the old weights.

A repository on the Hub keeps everything that was ever pushed to it. Pushing an unlearned model over the original one
therefore leaves the original, with what it remembers, one `revision=` away. `remains` tells what a repository still
holds, `erase` takes it away.
"""

import contextlib
import fnmatch
import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

import huggingface_hub
from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError

# What a training run leaves that was computed from the forget set and is not the model: see `traces`.
TRACES = ("optimizer*.pt", "optimizer*.bin", "scheduler.pt", "scaler.pt", "rng_state*.pth", "partition.safetensors")
CHECKPOINTS = "checkpoint-*"
PRIVATE = ["_*", ".git*", ".cache*"]


class PushError(RuntimeError):
    """An upload to the Hub did not happen, or not wholly. Nothing is lost on this machine."""


def traces(folder: str) -> list[str]:
    """Files directly in a folder that hold what was computed from the forget set: optimizer moments, masks, generator
    states."""
    return sorted(name for name in os.listdir(folder) if any(fnmatch.fnmatch(name, pattern) for pattern in TRACES))


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


def push_folder(
    folder: str,
    repo: str,
    *,
    message: str = "Upload unlearned model",
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    training_state: bool = False,
) -> str:
    """Upload a saved model with its card and report; return the address of the commit.

    folder: what `save_model` and `create_model_card` wrote. repo: "name" or "owner/name"; made where there is none.
    training_state: also upload checkpoints, optimizer state and masks, which hold traces of the forget set.

    Raises ValueError for a folder without a model, PushError if the Hub or the connection does not play along.
    """
    if not os.path.isdir(folder) or not any(
        name.endswith((".safetensors", ".bin")) and name not in traces(folder) for name in os.listdir(folder)
    ):
        raise ValueError(f"folder={folder!r}: there is no saved model in it. Name the output_dir of a finished run.")
    kept_back = [] if training_state else [CHECKPOINTS, f"*/{CHECKPOINTS}", *TRACES, *(f"*/{t}" for t in TRACES)]
    api = HfApi(token=token)
    with explained(repo, folder):
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
        done = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message=message,
            revision=revision,
            ignore_patterns=[*PRIVATE, *(f"*/{pattern}" for pattern in PRIVATE), *kept_back],
        )
    return str(done.commit_url)


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
        large = [entry for entry in api.list_repo_tree(repo, recursive=True) if getattr(entry, "lfs", None)]
        current = {entry.lfs.sha256 for entry in large}
        files = [file for file in api.list_lfs_files(repo) if not {file.oid, file.file_oid} & current]
        refs = api.list_repo_refs(repo, include_pull_requests=True)
    names = [ref.ref for ref in (*refs.branches, *refs.tags, *(refs.pull_requests or []), *refs.converts)]
    return Remains(
        tuple((entry.path, entry.size) for entry in large),
        tuple(commit.title for commit in commits[1:]),
        tuple((file.filename, file.size, file.oid) for file in files),
        tuple(name for name in names if name != "refs/heads/main"),
    )


def erase(repo: str, token: str | None = None) -> None:
    """Squash the main branch to one commit and delete the large files that it no longer has. There is no way back.

    Other branches, tags and pull requests stay and lose the deleted files. Raises PushError; calling it again goes on.
    """
    api = HfApi(token=token)
    with explained(repo):
        api.super_squash_history(repo, commit_message="Unlearned model; the history before it was removed")
        gone = {oid for _, _, oid in remains(repo, token).files}
        stale = [file for file in api.list_lfs_files(repo) if file.oid in gone]
        if stale:
            api.permanently_delete_lfs_files(repo, stale)
