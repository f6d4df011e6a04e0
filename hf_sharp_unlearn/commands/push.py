"""`sharp-unlearn push`: upload a model, and look after what the repository keeps of the old one."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from ..sharing import check_folder, erase, left_out, make_repo, push_folder, remains, shareable_files
from .folders import refuse_busy
from .options import option
from .parsing import UsageError, parse

EXPLANATION = """\
A repository keeps its history: whoever asks for an older revision still gets the model that remembers. Pushing over it
is not enough. --replace --delete-history also deletes the other weight files of the main branch, squashes it to one
commit, and deletes the large files that no branch, tag or pull request has any more. There is no way back. Other
branches and tags keep what they have until you delete them, and nothing reaches copies, forks, mirrors, caches, and
downloads that were made before."""


@dataclass
class Push:
    _argument_group_name = "push"

    folder: str = option("the output folder of an unlearning run (also as first argument)", "")
    repo: str = option("where to: OWNER/NAME on the Hub; made where there is none", "")
    private: bool = option("make a new repository private", False)
    message: str = option("of the commit", "Upload unlearned model")
    revision: str | None = option("branch to push to; default: main")
    also: list[str] = option("further files of the folder; only model, processor, card and report go by themselves", [])


@dataclass
class History:
    _argument_group_name = "old weights"

    replace: bool = option("this repository holds the model before unlearning: explain what it keeps of it", False)
    delete_history: bool = option(
        "with --replace: squash the history and delete the old large files. There is no way back", False
    )


@dataclass
class State:
    _argument_group_name = "training state"

    include_training_state: bool = option(
        "also upload checkpoints, optimizer state and masks, which are computed from the forget set", False
    )


def main(argv: Sequence[str]) -> None:
    argv = list(argv)
    if argv and not argv[0].startswith("-"):
        argv = ["--folder", *argv]
    push, history, state = parse(
        "push",
        f"Upload the weights, processor, config, card and report of a finished run. {EXPLANATION}",
        (Push, History, State),
        argv,
    )
    if not push.folder or not push.repo:
        raise UsageError("Name the folder and the repository: sharp-unlearn push FOLDER --repo OWNER/NAME.")
    if history.delete_history and not history.replace:
        raise UsageError("--delete-history without --replace: it is the repository's old model that is deleted.")
    if history.replace and push.revision not in (None, "main"):
        raise UsageError(f"--replace --revision {push.revision}: history is squashed on the main branch only.")
    if history.replace and "/" not in push.repo:
        raise UsageError(f"--replace --repo {push.repo}: name the owner too, OWNER/NAME.")
    check_folder(push.folder)
    refuse_busy(push.folder, "--folder")
    if history.replace and not history.delete_history:
        print(EXPLANATION)
        print(remains(push.repo).describe(push.repo))
        raise ValueError("Nothing was pushed. Add --delete-history to replace the old model for good.")
    if state.include_training_state:
        asked = sorted(set(shareable_files(push.folder, True)) - set(shareable_files(push.folder)))
        warnings.warn(
            f"--include-training-state: {asked} are computed from the forget set and will be on the Hub.", stacklevel=2
        )
    included = shareable_files(push.folder, state.include_training_state, push.also)
    if stays := left_out(push.folder, state.include_training_state, push.also):
        shown = ", ".join(stays[:8]) + (", ..." if len(stays) > 8 else "")
        print(f"{len(included)} files go; {len(stays)} stay here ({shown}). --also NAME takes one along.")
    repo = make_repo(push.repo, private=push.private or None, folder=push.folder)
    done = push_folder(
        push.folder,
        repo,
        message=push.message,
        revision=push.revision,
        training_state=state.include_training_state,
        replace=history.replace,
        also=push.also,
    )
    print(f"pushed: {done.commit_url}")
    if history.delete_history:
        erase(repo)
    left = remains(repo)
    if history.delete_history and left:
        print(left.describe(repo))
        raise ValueError(
            f"{repo}: the main branch has the unlearned model only, but {', '.join(left.refs) or 'the repository'} may "
            "still hold the old one. Delete these references on the Hub, and run the command again."
        )
    if history.delete_history:
        print("The history is gone. Copies that others made before are not.")
    elif left.files or left.refs:
        print(f"{left.describe(repo)}\nIf these are the model before unlearning, see --replace.")
