"""Saving for others: weights that load elsewhere, the model card, pushes to the Hub."""

import contextlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.trainer_utils import HubStrategy

from .commitment import keep_commitment
from .data import rows_of
from .hub import PushError, explained, traces
from .model_card import REPORT_FOLDER, card_of
from .report import UnlearningReport
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
        wrapped = getattr(getattr(model, "config", None), "model_type", None) == "timm_wrapper"
        if wrapped:
            state_dict = {
                name.removeprefix(TIMM_PREFIX): value for name, value in (state_dict or model.state_dict()).items()
            }
        with self._shared_args():
            super()._save(output_dir, state_dict)
        if wrapped and self.args.should_save:
            _complete_timm_config(model, os.path.join(folder, "config.json"))

    @contextlib.contextmanager
    def _shared_args(self) -> Iterator[None]:
        own, self.args = self.args, shareable(self.args)
        try:
            yield
        finally:
            self.args = own

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
        return self._saved_report[1]

    def _refresh_card(self) -> None:
        if self._card_written:
            self.create_model_card()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = super().evaluate(*args, **kwargs)
        self._refresh_card()
        return metrics

    # ---- pushes ----

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        with explained(self.args.hub_model_id or self.hub_name):
            super().init_hf_repo(*args, **kwargs)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `Trainer.push_to_hub`: weights, processor, config, card and report; returns what that returns.

        Raises PushError with the remedy if the Hub refuses or the connection breaks: the model then is whole in the
        output folder, and a second call completes the push. ValueError if the output folder has files with traces of
        the forget set (optimizer state, masks).
        """
        self._check_for_traces()
        folder = self.args.output_dir
        if self.hub_model_id is None:
            try:
                self.init_hf_repo(token=token, **({} if private is None else {"private": private}))
            except PushError as error:
                self.save_model(_internal_call=True)  # Trainer would save after this, and the model would be lost
                raise PushError(f"{error} The model is whole in {folder}; push again when this is mended.") from error
        if "tags" in kwargs:  # Trainer appends to the caller's list
            kwargs["tags"] = [kwargs["tags"]] if isinstance(kwargs["tags"], str) else list(kwargs["tags"] or [])
        with explained(self.args.hub_model_id or self.hub_name, folder):
            return super().push_to_hub(commit_message, blocking, token, revision, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END:
            self.create_model_card()
            with self._shared_args():
                super()._push_from_checkpoint(checkpoint_folder)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        jobs = getattr(getattr(self, "push_in_progress", None), "jobs", ())
        failed = [job for job in jobs if job.done() and job.exception() is not None]
        self.push_in_progress = None
        for job in failed:
            try:
                with explained(self.args.hub_model_id or self.hub_name, self.args.output_dir):
                    job.result()
            except Exception as error:  # the run itself is whole: a lost upload must not end it
                logger.warning("A push during training failed. %s", error)

    def _check_for_traces(self) -> None:
        folder = self.args.output_dir
        found = traces(folder) if os.path.isdir(folder) else []
        if found:
            raise ValueError(
                f"output_dir={folder!r} holds {found}: computed from the forget set, and a push would publish it. Move "
                "these files away, or use another output_dir."
            )

    def _check_push(self) -> None:
        """Before any work: what a run with push_to_hub would publish."""
        if not self.args.push_to_hub:
            return
        self._check_for_traces()
        strategy = HubStrategy(self.args.hub_strategy)
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            warnings.warn(
                f"hub_strategy={strategy.value!r} uploads optimizer state and the partition, which are computed from "
                "the forget set, to the Hub. hub_strategy='every_save' or 'end' keeps them here.",
                stacklevel=3,
            )


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
