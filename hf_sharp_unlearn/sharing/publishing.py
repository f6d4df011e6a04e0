"""Saving for others: weights that load elsewhere, the model card, pushes to the Hub."""

import functools
import json
import logging
import os
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from ..data import rows_of
from ..report import CAPTIONS, UnlearningReport
from .commitment import keep_commitment
from .hub import check_base, check_folder, make_repo, push_folder, shareable_files
from .model_card import REPORT_FOLDER, card_of
from .shareable import shareable

logger = logging.getLogger(__name__)
TIMM_PREFIX = "timm_model."
# What timm needs of a model's configuration, and transformers of an image processor's.
TIMM_FIELDS = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode", "pool_size", "first_conv",
               "classifier", "fixed_input_size")  # fmt: skip


class PublishHooks:
    """Hooks of `Trainer`, mixed into `UnlearningTrainer`."""

    report: UnlearningReport | None = None  # of the latest `evaluate_unlearning`
    resumed = False
    _card_options: dict[str, Any]
    _card_written = False
    _saved_report: tuple[UnlearningReport | None, list[str]] = (None, [])

    # ---- files ----

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """As Trainer saves, with arguments that may be shared and, of a timm model, weights as timm names them: both
        libraries read these."""
        folder = output_dir if output_dir is not None else self.args.output_dir
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        adapter = hasattr(model, "peft_config")
        wrapped = not adapter and getattr(getattr(model, "config", None), "model_type", None) == "timm_wrapper"
        if wrapped:
            state_dict = {
                name.removeprefix(TIMM_PREFIX): value for name, value in (state_dict or model.state_dict()).items()
            }
        own, self.args = self.args, shareable(self.args)
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args = own
        if not self.args.should_save:
            return
        if wrapped:
            _complete_timm_config(model, os.path.join(folder, "config.json"))
        page = os.path.join(folder, "README.md")
        if adapter and os.path.exists(page):  # peft's own card: it names the base model, be it a folder of this machine
            os.remove(page)
            if self._card_written and folder == self.args.output_dir:
                self.create_model_card()

    # ---- the card ----

    @property
    def hub_name(self) -> str:
        """The model's name on its card: the repository's without its owner, or the output folder's."""
        if self.args.hub_model_id is not None:
            return self.args.hub_model_id.split("/")[-1]
        return Path(self.args.output_dir).absolute().name

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,  # noqa: A002
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write README.md, the model card, into the output folder, with the latest report beside it.

        Takes what `Trainer.create_model_card` takes; what was given once is kept when the card is written again: after
        an evaluation, with a checkpoint, by a push. The counts, the method and the cost come from the run;
        `forget_selection` and `retrain_seconds` of the arguments say what the run cannot know.
        """
        given = {
            "language": language,
            "license": license,
            "tags": tags,
            "model_name": model_name,
            "finetuned_from": finetuned_from,
            "tasks": tasks,
            "dataset_tags": dataset_tags,
            "dataset": dataset,
            "dataset_args": dataset_args,
        }
        self._card_options |= {name: value for name, value in given.items() if value is not None}
        if not self.is_world_process_zero():
            return
        folder = self.args.output_dir
        os.makedirs(folder, exist_ok=True)
        indices = self.forget_indices if self.forget_indices is not None else rows_of(self.forget_dataset)
        commitment = None if indices is None else keep_commitment(indices, folder)
        card = card_of(self, commitment=commitment, plots=self._save_report(folder), **self._card_options)
        path = os.path.join(folder, "README.md")
        with open(path + ".tmp", "w", encoding="utf-8") as file:
            file.write(str(card))
        os.replace(path + ".tmp", path)
        self._card_written = True

    def _save_report(self, folder: str) -> list[str]:
        """Save the latest report beside the card, once; the names of its plots."""
        if self.report is not None and self._saved_report[0] is not self.report:
            paths = self.report.save(os.path.join(folder, REPORT_FOLDER))
            self._saved_report = self.report, [os.path.basename(path) for path in paths if path.endswith(".png")]
            _keep_only(os.path.join(folder, REPORT_FOLDER), [os.path.basename(path) for path in paths])
        return self._saved_report[1]

    def _forget_report(self) -> None:
        """A report is of the weights that it was made on: training makes others."""
        if self._saved_report[0] is not None and self.is_world_process_zero():
            _keep_only(os.path.join(self.args.output_dir, REPORT_FOLDER), [])
        self.report, self._saved_report = None, (None, [])

    def _refresh_card(self) -> None:
        if self._card_written:
            self.create_model_card()

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = super().evaluate(eval_dataset, *args, **kwargs)
        if eval_dataset is None or isinstance(eval_dataset, Mapping):  # Trainer calls this again for each split
            self._refresh_card()
        return metrics

    # ---- pushes ----

    def init_hf_repo(self, token: str | None = None, private: bool | None = None, folder: str | None = None) -> None:
        """As Trainer: make the repository. folder: where the model lies meanwhile, for the error. Raises PushError."""
        if self.is_world_process_zero():
            self.hub_model_id = make_repo(
                self.args.hub_model_id or self.hub_name,
                private=self.args.hub_private_repo if private is None else private,
                token=self.args.hub_token if token is None else token,
                folder=folder,
            )
            self.push_in_progress = None

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | Future | None:
        """Save and upload weights, processor, config, card and report, as `Trainer.push_to_hub` does; what else lies in
        the output folder and may be published goes along (see `hub.shareable_files`).

        kwargs: of `create_model_card`. Returns the commit, or with `blocking=False` its Future.

        Raises PushError with the remedy if the Hub refuses or the connection breaks (with `blocking=False` the Future
        does): the model then is whole in the output folder, and a second call completes the push.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        folder, token = self.args.output_dir, token if token is not None else self.args.hub_token
        self.save_model(_internal_call=True)  # first: a refusal must not lose it
        if not self.is_world_process_zero():
            return None
        check_folder(folder)
        if self.hub_model_id is None:
            self.init_hf_repo(token, private, folder)
        self.create_model_card(**{"model_name": self.hub_model_id.split("/")[-1], **kwargs})
        self._finish_current_push()
        return self._push(folder, commit_message, blocking, token=token, revision=revision or self.args.hub_revision)

    def _push(self, folder: str, message: str | None, blocking: bool, **options: Any) -> CommitInfo | Future:
        upload = functools.partial(push_folder, folder, self.hub_model_id, message=message, **options)
        return upload() if blocking else HfApi().run_as_future(upload)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As Trainer: upload the weights of a checkpoint in the background, with strategy and card."""
        strategy, output_dir = HubStrategy(self.args.hub_strategy), self.args.output_dir
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        running = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if running and not self.args.hub_always_push:
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        for name in shareable_files(checkpoint_folder):
            if os.path.basename(name) == name:
                shutil.copy(os.path.join(checkpoint_folder, name), os.path.join(output_dir, name))
        self.create_model_card()
        unit = (
            ("step", self.state.global_step) if self.args.save_strategy == "steps" else ("epoch", int(self.state.epoch))
        )
        message, settings = "Training in progress, {} {}".format(*unit), {"token": self.args.hub_token}
        settings["revision"] = self.args.hub_revision
        jobs = [self._push(output_dir, message, False, **settings)]
        if strategy != HubStrategy.EVERY_SAVE:
            last = strategy == HubStrategy.CHECKPOINT
            settings |= {
                "path_in_repo": "last-checkpoint" if last else os.path.basename(checkpoint_folder),
                "training_state": True,
            }
            jobs.append(self._push(checkpoint_folder, f"{message}, checkpoint", False, **settings))
        if running:
            self.push_in_progress.jobs.extend(jobs)
        else:
            self.push_in_progress = PushInProgress(jobs)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        jobs = getattr(getattr(self, "push_in_progress", None), "jobs", ())
        failed = [job.exception() for job in jobs if job.done() and job.exception() is not None]
        self.push_in_progress = None
        for error in failed:  # the run itself is whole: a lost upload must not end it
            logger.warning("A push during training failed. %s", error)

    def _check_push(self, model: Any) -> None:
        """Before any work: what a run with push_to_hub would publish."""
        if not self.args.push_to_hub:
            return
        for config in getattr(model, "peft_config", {}).values():
            check_base(config.base_model_name_or_path)
        strategy = HubStrategy(self.args.hub_strategy)
        if strategy == HubStrategy.END:
            return
        what = f"hub_strategy={strategy.value!r} leaves weights that have not forgotten yet in the repository's history"
        if strategy != HubStrategy.EVERY_SAVE:
            what += ", and uploads optimizer state and the partition, which are computed from the forget set"
        warnings.warn(f"{what}. hub_strategy='end' pushes the unlearned model only.", stacklevel=3)


def _keep_only(folder: str, names: list[str]) -> None:
    """Remove what earlier reports have left in their folder."""
    for name in (*CAPTIONS, "report.json", "report.md"):
        if name not in names and os.path.exists(path := os.path.join(folder, name)):
            os.remove(path)


def _complete_timm_config(model: Any, path: str) -> None:
    """timm reads how images are prepared from `pretrained_cfg`, and so does AutoImageProcessor: write what the model
    knows where its config says nothing."""
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    if config.get("pretrained_cfg") is None:
        known = dict(model.timm_model.pretrained_cfg or {})
        config["pretrained_cfg"] = {name: known[name] for name in TIMM_FIELDS if known.get(name) is not None}
        with open(path + ".tmp", "w", encoding="utf-8") as file:
            json.dump(config, file, indent=2, sort_keys=True)
        os.replace(path + ".tmp", path)
