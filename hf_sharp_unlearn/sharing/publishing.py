"""The card and the report in the output folder, kept up to date; what a run with `push_to_hub` uploads and when."""

import functools
import os
import shutil
import warnings
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from transformers.trainer_utils import HubStrategy

from ..report import CAPTIONS, UnlearningReport
from ..runtime import write_text
from .card_facts import RunFacts
from .commitment import keep_commitment
from .hub import check_base, push_folder
from .model_card import REPORT_FOLDER, card_of
from .publishable import shareable_files


class CardKeeper:
    """README.md of an output folder with the report beside it. Once written, it is written again when what it says has
    changed; options that were given once are kept."""

    def __init__(self) -> None:
        self.written = False
        self._options: dict[str, Any] = {}
        self._saved: tuple[UnlearningReport | None, list[str]] = (None, [])  # a report, and the names of its plots

    def remember(self, options: dict[str, Any]) -> None:
        """options: those of `Trainer.create_model_card`; None keeps what was given before."""
        self._options |= {name: value for name, value in options.items() if value is not None}

    def write(self, run: RunFacts, rows: Sequence[int] | None) -> None:
        """rows: of the forget set in the training data, for the commitment, if they are known."""
        folder = run.args.output_dir
        os.makedirs(folder, exist_ok=True)
        commitment = None if rows is None else keep_commitment(rows, folder)
        card = card_of(run, commitment=commitment, plots=self._save_report(run.report, folder), **self._options)
        write_text(os.path.join(folder, "README.md"), str(card))
        self.written = True

    def forget_report(self, folder: str) -> None:
        """A report is of the weights that it was made on: training makes others."""
        if self._saved[0] is not None:
            _keep_only(os.path.join(folder, REPORT_FOLDER), [])
        self._saved = None, []

    def _save_report(self, report: UnlearningReport | None, folder: str) -> list[str]:
        """Save a report beside the card, once; the names of its plots."""
        if report is not None and self._saved[0] is not report:
            names = [os.path.basename(path) for path in report.save(os.path.join(folder, REPORT_FOLDER))]
            self._saved = report, [name for name in names if name.endswith(".png")]
            _keep_only(os.path.join(folder, REPORT_FOLDER), names)
        return self._saved[1]


def _keep_only(folder: str, names: list[str]) -> None:
    """Remove what earlier reports have left in their folder."""
    for name in (*CAPTIONS, "report.json", "report.md"):
        if name not in names and os.path.exists(path := os.path.join(folder, name)):
            os.remove(path)


def upload(folder: str, repo: str, message: str | None, blocking: bool, **options: Any) -> CommitInfo | Future:
    """`push_folder`, now or in the background."""
    push = functools.partial(push_folder, folder, repo, message=message, **options)
    return push() if blocking else HfApi().run_as_future(push)


def copy_for_push(checkpoint: str, output_dir: str) -> None:
    """Put the model of a checkpoint into the output folder, which is pushed."""
    for name in shareable_files(checkpoint):
        if os.path.basename(name) == name:
            shutil.copy(os.path.join(checkpoint, name), os.path.join(output_dir, name))


def push_checkpoint(
    checkpoint: str, output_dir: str, repo: str, strategy: HubStrategy, unit: str, **settings: Any
) -> list[Future]:
    """Upload what `copy_for_push` has put into the output folder, and the checkpoint too if the strategy says so.

    unit: how far the run is, e.g. "step 500". settings: token and revision.
    """
    message = f"Training in progress, {unit}"
    jobs = [upload(output_dir, repo, message, False, **settings)]
    if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        place = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else os.path.basename(checkpoint)
        settings |= {"path_in_repo": place, "training_state": True}
        jobs.append(upload(checkpoint, repo, f"{message}, checkpoint", False, **settings))
    return jobs


def failures(jobs: Sequence[Future]) -> list[BaseException]:
    return [job.exception() for job in jobs if job.done() and job.exception() is not None]


def check_push(args: Any, model: Any) -> None:
    """Before any work: what a run with push_to_hub would publish. Raises ValueError for what nobody could load."""
    if not args.push_to_hub:
        return
    for config in getattr(model, "peft_config", {}).values():
        check_base(config.base_model_name_or_path)
    strategy = HubStrategy(args.hub_strategy)
    if strategy == HubStrategy.END:
        return
    what = f"hub_strategy={strategy.value!r} leaves weights that have not forgotten yet in the repository's history"
    if strategy != HubStrategy.EVERY_SAVE:
        what += ", and uploads optimizer state and the partition, which are computed from the forget set"
    warnings.warn(f"{what}. hub_strategy='end' pushes the unlearned model only.", stacklevel=3)
