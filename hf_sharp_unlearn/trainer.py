"""`UnlearningTrainer`: transformers.Trainer on two streams. This file is the table of contents of a run.

Trainer keeps its loop, optimizers, schedulers, clipping, logging, callbacks, checkpoints and evaluation. Each hook that
is overridden stands here, in the order in which a run meets it, says what would break without it, and hands over to the
room that does the work. CONTRIBUTING has the list of upstream's hooks.
"""

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache
from huggingface_hub import CommitInfo
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Sampler
from transformers import ProgressCallback, Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress, logging

from . import data, run, sharing, step
from .arguments import UnlearningArguments
from .methods import Method, resolve_method
from .metrics import accuracy, predicted_classes
from .report import Prepared, UnlearningReport, evaluate_unlearning
from .runtime import draws_bars, forget_casts, full_disk_named, isolated_rng, on_first

logger = logging.get_logger(__name__)


class UnlearningTrainer(Trainer):
    """A `transformers.Trainer` that makes a trained model forget.

    Takes what `Trainer` takes, except `train_dataset`, and

    method: a `Method`, e.g. SharpMinMax(alpha=0.97), or its name in METHODS.
    forget_dataset, retain_dataset: map-style data sets of disjoint samples; a method that uses one stream only runs
        without the other.
    eval_dataset: one data set, reported as `eval_test_*` and, for scripts that were written for `Trainer`, as `eval_*`
        too, or a dict of them, reported under its keys. `evaluate` always reports `eval_forget_*` and `eval_retain_*`
        (a fixed subsample of `args.eval_retain_samples`) too, each with its `_loss`, `_accuracy` (unless
        `compute_metrics` is given) and number of `_samples`.

    forget_indices: rows of the forget set in the training data, for the commitment on the model card; what
        `split_forget` made knows its own.

    Raises ValueError for input that cannot work before any work starts, FloatingPointError when a step meets a
    non-finite loss or norm (weights are then as before the step).
    """

    # ---- set-up ----

    def __init__(
        self,
        model: Any = None,
        args: UnlearningArguments | None = None,
        data_collator: Any = None,
        train_dataset: None = None,
        eval_dataset: Any = None,
        *trainer_args: Any,
        method: Method | str,
        forget_dataset: Any = None,
        retain_dataset: Any = None,
        forget_indices: Sequence[int] | None = None,
        **trainer_kwargs: Any,
    ):
        args = UnlearningArguments("tmp_trainer") if args is None else args
        self.method = resolve_method(method)
        self.forget_dataset, self.retain_dataset = forget_dataset, retain_dataset
        sets = {"retain": retain_dataset, "forget": forget_dataset}
        run.checks.check_arguments(args, train_dataset, self.method)
        run.data_checks.check_datasets(self.method, sets)
        run.data_checks.check_loaders(args, sets)
        run.data_checks.check_splits(eval_dataset)
        self.forget_indices = run.data_checks.check_forget_indices(forget_indices, forget_dataset)
        model = step.without_wrapper(model)
        if model is not None:
            run.checks.check_model(model, self.method)
            sharing.check_saveable(model)
        sharing.check_push(args, model)

        self.partition: step.Partition | None = None  # of the run that is active, or was the last
        self.teacher: step.Teacher | None = None
        self.report: UnlearningReport | None = None  # the latest one of the weights as they are
        self.overlaps: list[run.Overlap] = []  # of the run's sets, by content; known on the first process
        self.resumed = False
        self._pending = step.PendingWindow()
        self._active: run.ActiveRun | None = None
        self._epochs: run.Epochs | None = None
        self._mean_loss: run.MeanLoss | None = None
        self._warnings: list[str] = []  # on the latest evaluation, for the card
        self._one_test_set = eval_dataset is not None and not isinstance(eval_dataset, Mapping)
        self._test_prefix: str | None = None  # of the metrics that are logged without their split's name too
        self._not_loaded: list[str] = []
        self._card = sharing.CardKeeper()
        super().__init__(
            model,
            args,
            data_collator,
            data.dataset_of(self.method.streams[0], forget_dataset, retain_dataset),
            data.evaluation_sets(
                forget_dataset, retain_dataset, eval_dataset, args.eval_retain_samples, _data_seed(args)
            ),
            *trainer_args,
            **trainer_kwargs,
        )
        self._loss_shifts_labels = step.shifts_labels(self.model)  # Trainer goes by the name of the class
        self.model_accepts_loss_kwargs = False  # a window's losses are means of its own making (see `step.window`)
        self._check_with_what_trainer_has_made(sets)
        self._classes = run.classes_to_draw(
            self.model, self.method, self._first_forget_sample, self.label_names, self._loss_shifts_labels
        )
        if not draws_bars() and any(type(known) is ProgressCallback for known in self.callback_handler.callbacks):
            self.remove_callback(ProgressCallback)
            self.add_callback(run.LineProgress())
        if self.method.rewind is not None:
            self.add_callback(self._rewind(self.method.rewind))

    # ---- data ----

    def get_train_dataloader(self) -> DataLoader:
        """Micro-batches {"retain": ..., "forget": ...} instead of Trainer's of one data set."""
        streams = self._streams()
        loader = self.accelerator.prepare(streams.train_loader(self._get_train_sampler))
        return data.sized(loader, streams.size(self.method.streams[0]) * streams.processes)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        """Trainer would load every sample of a union for its length."""
        own = data.length_grouped(train_dataset, self.args)
        return super()._get_train_sampler(train_dataset) if own is None else own

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Without a set Trainer takes its only one, and would load the splits' names here."""
        if eval_dataset is None and isinstance(self.eval_dataset, Mapping):
            if not self._one_test_set:
                raise ValueError(f"get_eval_dataloader() of which split? Name one of {list(self.eval_dataset)}.")
            eval_dataset = "test"
        return super().get_eval_dataloader(eval_dataset)

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> DataLoader:
        """Evaluation and prediction: random augmentation would change from one to the next, and move the generators of
        the run."""
        own = copy(self.args)
        own.dataloader_pin_memory = data.pins_memory(self.args, dataset)
        if not isinstance(dataset, IterableDataset) and hasattr(dataset, "__len__"):
            dataset = data.SeededDataset(dataset, _data_seed(self.args))
        with self._with_arguments(own):
            return super()._get_dataloader(dataset, *args, **kwargs)

    # ---- start ----

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trainer would take the latest checkpoint even if a killed run or a full disk has left half of it."""
        files = run.needed(self.method, self.args.save_only_model, self.args.world_size)
        found = run.to_resume(resume_from_checkpoint, self.args.output_dir, files)
        return super().train(found, *args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Partition and teacher belong to the weights before the checkpoint: they are checked before any weight is
        touched. Weights that Trainer does not find are loaded under their older names."""
        partition = run.resumed_partition(self.model, self.method, resume_from_checkpoint)
        if self.teacher is None or not self.teacher.made(resume_from_checkpoint):
            self.teacher = None  # before the next one: never two copies
            self.teacher = run.resumed_teacher(self.model, self.method, resume_from_checkpoint)
        self.partition = partition
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._complete_weights(resume_from_checkpoint)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Trainer warns of missing weights and goes on with half a model: see `_complete_weights`."""
        self._not_loaded = list(load_result.missing_keys)

    def _inner_training_loop(self, batch_size: int | None = None, **kwargs: Any) -> Any:
        """What a run holds must not outlive it, and an attempt that did not fit must leave nothing behind."""
        own = self.optimizer, self.lr_scheduler

        def put_back() -> None:
            self.optimizer, self.lr_scheduler = own

        undone = run.undone_if_too_large(self.args.auto_find_batch_size, self.model, own, self.args.device, put_back)
        try:
            with undone:
                output = super()._inner_training_loop(batch_size=batch_size, **kwargs)
            if self._active is not None:
                self._active.update.skips.conclude()
            return output
        finally:
            if self._active is not None:
                self._active.release()
            self._active, self._pending = None, step.PendingWindow()
            forget_casts()  # of the weights before the last step

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        """Partition and teacher are taken from the weights before the first step and before the model is wrapped."""
        self.report, self.resumed = None, resume_from_checkpoint is not None
        self.overlaps = self._compared_sets()
        if self.is_world_process_zero():
            self._card.forget_report(self.args.output_dir)
        if resume_from_checkpoint is None:
            self.partition = self._make_partition()
            self.teacher = None  # before the next one: never two copies
            self.teacher = run.make_teacher(self.model, self.method)
        fresh = self.optimizer is None
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        self._active = self._begun(prepared[0], fresh)
        if self._steps_use_forget_rows:
            size = len(self.forget_dataset)
            left, needed = self._epochs.unvisited(size, max_steps), self._epochs.needed(size)
            run.checks.warn_of_unvisited(left, size, max_steps, needed, self._streams().size("forget"))
        return prepared

    # ---- epochs ----

    def set_initial_training_values(self, args: Any, dataloader: DataLoader) -> tuple:
        """Trainer takes all epochs for as long as the loader says."""
        whole = len(self.retain_dataset) + len(self.forget_dataset) if self.method.single_step else None
        self._epochs = run.Epochs(data.stream_sampler(dataloader), args.gradient_accumulation_steps, whole)
        return self._epochs.training_values(super().set_initial_training_values(args, dataloader), args)

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, resume: Any, trial: Any
    ) -> tuple[int, int]:
        """Trainer divides the steps behind it by the length of one epoch."""
        start = super()._init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, resume, trial)
        if self.state.global_step == 0:
            return start
        epoch, micro_batches = self._epochs.position(self.state.global_step)
        return epoch, 0 if self.args.ignore_data_skip else micro_batches

    def _run_epoch(self, *, epoch: int, **values: Any) -> Any:
        """Each epoch has its own length."""
        return super()._run_epoch(epoch=epoch, **{**values, **self._epochs.begin(epoch)})

    # ---- the step ----

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list, None]:
        """A method that takes several passes needs the whole window at its last micro-batch."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._pending.fill(batches)
        return batches, None

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch: Any = None) -> Tensor:
        """Zero for all but the last micro-batch of a window; there the method runs over the whole window.

        Returns this process's share of the window's objective. On return `.grad` holds the step's gradient and the
        weights are what they were.
        """
        window = self._pending.take(inputs)
        if window is None:
            return step.no_objective(self.args.device)
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        steps = step.Steps(self._step_context(model), self.method.step) if self._active is None else self._active.steps
        counted = self._streams().counted
        batches = [self._prepare_inputs(batch if data.COUNTS in batch else counted(batch)) for batch in window]
        behind = self.state.global_step
        objective = steps.make(batches, behind + 1, behind / max(self.state.max_steps, 1))
        if self.args.torch_empty_cache_steps is not None and behind % self.args.torch_empty_cache_steps == 0:
            clear_device_cache()
        return objective

    def floating_point_ops(self, inputs: dict) -> int:
        """Trainer looks for the model's input in the micro-batch, not in its streams, and counts one pass."""
        streams = [inputs[stream] for stream in self.method.streams if stream in inputs]
        return self.method.passes * sum(super(UnlearningTrainer, self).floating_point_ops(batch) for batch in streams)

    def _track_num_input_tokens(self, inputs: dict) -> None:
        for stream in self.method.streams:
            if stream in inputs:
                super()._track_num_input_tokens(inputs[stream])

    # ---- the update ----

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """A method with a partition can update in one sweep; a method that makes one step leaves the update itself."""
        if self.method.single_step:
            self.optimizer = step.whole_update(self.model) if self.optimizer is None else self.optimizer
            return self.optimizer
        if self.optimizer is not None or self.optimizer_cls_and_kwargs is not None or self.method.fraction is None:
            return super().create_optimizer(model)
        chosen = self.get_optimizer_cls_and_kwargs(self.args, self.model if model is None else model)
        self.optimizer_cls_and_kwargs = step.sweeping(*chosen)
        try:
            return super().create_optimizer(model)
        finally:
            self.optimizer_cls_and_kwargs = None

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The learning rate has no say in a single step."""
        if self.method.single_step and self.lr_scheduler is None:
            self.lr_scheduler, self._created_lr_scheduler = step.unchanging(optimizer or self.optimizer), True
        return super().create_scheduler(num_training_steps, optimizer)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Trainer would read all gradients again for a norm that a sweep has computed already."""
        norm = self._active.steps.last.norm
        return None if self.method.single_step else super()._clip_grad_norm(model) if norm is None else norm

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Called once a step, after `_clip_grad_norm` if there is a limit. Trainer would step along a gradient that is
        not finite."""
        window = self._active.steps.last
        known = window.norm if grad_norm is None else grad_norm
        norm_of = partial(super()._get_grad_norm, model, grad_norm=known)
        norm = step.checked_norm(window, norm_of, self.state.global_step + 1, self._active.update.skips)
        if window.norm is not None:
            self._active.update.stage(window, norm)
        return norm

    # ---- logs and checkpoints ----

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer knows one loss only; scripts read the metrics of the only test set without its name."""
        if self._active is not None and {"loss", "learning_rate"} <= logs.keys():  # the training log, on all ranks
            logs |= self._active.steps.take_logs()
        if self._test_prefix is not None:
            start, plain = f"{self._test_prefix}_", f"{self._test_prefix.removesuffix('_test')}_"
            logs |= {plain + key.removeprefix(start): logs[key] for key in list(logs) if key.startswith(start)}
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A resume needs the partition and the teacher's fingerprint: the weights that they were made of are gone.
        Trainer would count, and remove, folders of the user's too."""
        folder, limit = self._get_output_dir(trial=trial), self.args.save_total_limit
        own = copy(self.args)
        own.save_total_limit = None
        with full_disk_named(folder), self._with_arguments(own):
            if self.args.should_save:
                run.keep_beside(folder, self.state.global_step, self.partition, self.teacher)
            super()._save_checkpoint(model, trial)
        if self.args.should_save:
            run.rotate(folder, self.state.global_step, limit, self.state.best_model_checkpoint)

    def _finalize_training(self, trial: Any, *args: Any, **kwargs: Any) -> Any:
        """As in `_save_checkpoint`: here Trainer leaves the best one only."""
        own, best = copy(self.args), self.state.best_model_checkpoint
        own.save_total_limit = None
        with self._with_arguments(own):
            output = super()._finalize_training(trial, *args, **kwargs)
        if self.args.should_save and best is not None and self.args.save_total_limit == 1:
            run.rotate(self._get_output_dir(trial), None, 1, best)
        return output

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Trainer writes tokens and paths of the machine into training_args.bin, and names of a timm model's weights
        that timm does not know."""
        folder = self.args.output_dir if output_dir is None else output_dir
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        with self._with_arguments(sharing.shareable(self.args)):
            super()._save(output_dir, sharing.state_to_save(model, state_dict))
        if self.args.should_save and sharing.complete_saved(model, folder) and folder == self.args.output_dir:
            self._refresh_card()

    def _load_best_model(self) -> None:
        """As `_load_from_checkpoint`: Trainer would go on with half a model."""
        super()._load_best_model()
        self._complete_weights(self.state.best_model_checkpoint)

    # ---- evaluation ----

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """As Trainer, for each split, with the accuracy where there are no metrics of the user's."""
        only_test = self._one_test_set and isinstance(eval_dataset, str) and eval_dataset == "test"
        before, self._test_prefix = self._test_prefix, metric_key_prefix if only_test else None
        try:
            with self._default_accuracy():
                metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            self._test_prefix = before
        if eval_dataset is None or isinstance(eval_dataset, Mapping):  # Trainer calls this again for each split
            self._warnings = run.no_better_than_chance(metrics, metric_key_prefix, data.classes_of(self.model))
            self._refresh_card()
        return metrics

    def evaluation_loop(self, dataloader: DataLoader, *args: Any, **kwargs: Any) -> Any:
        """Trainer's loss depends on how a split was dealt out to batches and processes."""
        forget_casts()
        self._mean_loss = self._mean_loss_of(dataloader)
        # Persistent loaders draw from the global generator at their first use only: see `data.loading`.
        isolated = isolated_rng() if self.args.dataloader_persistent_workers else contextlib.nullcontext()
        try:
            with isolated:
                output = super().evaluation_loop(dataloader, *args, **kwargs)
            mean = self._mean_loss.mean(self.args.device)
        finally:
            self._mean_loss = None
        prefix = kwargs.get("metric_key_prefix", "eval")
        if mean is not None and f"{prefix}_loss" in output.metrics:
            output.metrics[f"{prefix}_loss"] = mean
        output.metrics[f"{prefix}_samples"] = output.num_samples
        return output

    def prediction_step(
        self, model: nn.Module, inputs: dict, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple:
        """Each batch's share of the mean loss is known only here."""
        found = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        if self._mean_loss is not None:
            self._mean_loss.add(found[0], inputs, partial(super().prediction_step, model, prediction_loss_only=True))
        return found

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Any:
        """Trainer counts for models that take the number, and for a `compute_loss_func`; a `compute_loss` of the user's
        gets it too, as in training."""
        found = super()._get_num_items_in_batch(batch_samples, device)
        if found is None and self._has_own_compute_loss and batch_samples and "labels" in batch_samples[0]:
            found = torch.tensor(sum(self._count(batch)[0] for batch in batch_samples), device=device)
        return found

    def hyperparameter_search(
        self, hp_space: Any = None, compute_objective: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Trainer would sum losses, accuracies and sample counts of all splits into one number."""
        if compute_objective is None:
            splits, own = list(self.eval_dataset), self.compute_metrics is not None
            compute_objective = run.default_objective(splits, self._one_test_set, own)
        return super().hyperparameter_search(hp_space, compute_objective, *args, **kwargs)

    def evaluate_unlearning(
        self, reference: nn.Module | Prepared | None = None, output_dir: str | None = None, **options: Any
    ) -> UnlearningReport | None:
        """The whole report on the model as it is now: see `report.evaluate_unlearning`, which has the `options`.

        reference: a model retrained without the forget set, on the same device. output_dir: where report.json,
        report.md and the plots are written; None writes nothing. Sets are those of `evaluate`, the test set the one
        called "test".

        In a distributed run the first process does the work and returns the report; the others wait, at most
        `ddp_timeout` seconds, and return None.
        """
        settings = {
            **{split: self.eval_dataset.get(split) for split in ("forget", "retain", "test")},
            "batch_size": self.args.eval_batch_size,
            "collator": self._get_collator_with_removed_columns(self.data_collator, "evaluation"),
            "label_names": tuple(self.label_names),
            "seed": _data_seed(self.args),
            "progress": not self.args.disable_tqdm,
            **options,
        }

        def make() -> UnlearningReport:
            report = evaluate_unlearning(self.model, reference=reference, **settings)
            if output_dir is not None:
                report.save(output_dir)
            return report

        first, processes = self.is_world_process_zero(), self.accelerator.num_processes
        self.report = on_first(make, "The report", first, self.args.device, processes)
        self._refresh_card()
        return self.report

    # ---- sharing ----

    @property
    def hub_name(self) -> str:
        """The model's name on its card: the repository's without its owner, or the output folder's."""
        return (self.args.hub_model_id or Path(self.args.output_dir).absolute().name).split("/")[-1]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write README.md, the model card, into the output folder, with the latest report beside it.

        Takes what `Trainer.create_model_card` takes; what was given once is kept when the card is written again: after
        an evaluation, with a checkpoint, by a push. The counts, the method and the cost come from the run;
        `forget_selection` and `retrain_seconds` of the arguments say what the run cannot know.
        """
        given = inspect.signature(Trainer.create_model_card).bind(self, *args, **kwargs).arguments
        self._card.remember({name: value for name, value in given.items() if name != "self"})
        if self.is_world_process_zero():
            rows = data.rows_of(self.forget_dataset) if self.forget_indices is None else self.forget_indices
            self._card.write(self._facts(), rows)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None, folder: str | None = None) -> None:
        """As Trainer: make the repository. folder: where the model lies meanwhile, for the error. Raises PushError."""
        if self.is_world_process_zero():
            self.hub_model_id = sharing.make_repo(
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
        also: Sequence[str] = (),
        **kwargs: Any,
    ) -> CommitInfo | Future | None:
        """Save and upload weights, processor, config, card and report; what else lies in the output folder stays there
        (see `sharing.shareable_files`).

        also: names of further files to upload. kwargs: of `create_model_card`. Returns the commit, or with
        `blocking=False` its Future.

        Raises PushError with the remedy if the Hub refuses or the connection breaks (with `blocking=False` the Future
        does): the model then is whole in the output folder, and a second call completes the push.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        folder, token = self.args.output_dir, token if token is not None else self.args.hub_token
        self.save_model(_internal_call=True)  # first: a refusal must not lose it
        if not self.is_world_process_zero():
            return None
        sharing.check_folder(folder)
        if self.hub_model_id is None:
            self.init_hf_repo(token, private, folder)
        self.create_model_card(**{"model_name": self.hub_model_id.split("/")[-1], **kwargs})
        self._finish_current_push()
        if stays := sharing.left_out(folder, also=also):
            logger.warning("Not pushed: %s. push_to_hub(also=[...]) takes files along.", ", ".join(stays[:8]))
        where = {"token": token, "revision": revision or self.args.hub_revision, "also": also}
        return sharing.upload(folder, self.hub_model_id, commit_message, blocking, **where)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Trainer would take along logs, nested checkpoints and what was computed from the forget set."""
        strategy, args = HubStrategy(self.args.hub_strategy), self.args
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        running = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if running and not args.hub_always_push:
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        sharing.copy_for_push(checkpoint_folder, args.output_dir)
        self.create_model_card()
        steps = args.save_strategy == "steps"
        unit = f"step {self.state.global_step}" if steps else f"epoch {int(self.state.epoch)}"
        where = {"token": args.hub_token, "revision": args.hub_revision}
        jobs = sharing.push_checkpoint(checkpoint_folder, args.output_dir, self.hub_model_id, strategy, unit, **where)
        before = self.push_in_progress.jobs if running else []
        self.push_in_progress = PushInProgress([*before, *jobs])

    def _finish_current_push(self) -> None:
        """Trainer forgets uploads that failed: the run itself is whole, but the loss of one must be said."""
        super()._finish_current_push()
        for error in sharing.failures(getattr(getattr(self, "push_in_progress", None), "jobs", ())):
            logger.warning("A push during training failed. %s", error)
        self.push_in_progress = None

    # ---- what the rooms are given: made when it is needed, from the trainer as it is then ----

    def _check_with_what_trainer_has_made(self, sets: Mapping[str, Any]) -> None:
        args, model, method = self.args, self.model, self.method
        run.checks.check_hardware(args, self.accelerator, model)
        run.checks.check_model(model, method)
        run.checks.check_problem(model, method)
        run.checks.check_padding(model, max(args.train_batch_size, args.eval_batch_size), self.processing_class)
        step.choose_kernels(model, args.device, args.kernel_backend)  # a backend that cannot run is refused now
        if method.single_step:
            given, scaled = (self.optimizer or self.lr_scheduler) is not None, self.accelerator.scaler is not None
            run.checks.check_single_step(method, model, args.device, own_optimizer=given, scaled=scaled)
        run.checks.check_best_metric(args.metric_for_best_model, list(self.eval_dataset), self._one_test_set)
        self._set_signature_columns_if_needed()
        for stream, dataset in sets.items():
            if dataset is not None:
                own = self._has_own_compute_loss or self.compute_loss_func is not None or self.can_return_loss
                run.data_checks.check_samples(
                    model,
                    stream,
                    dataset,
                    accepted=self._signature_columns,
                    label_names=self.label_names,
                    collate=self._get_collator_with_removed_columns(self.data_collator),
                    keeps_columns=not args.remove_unused_columns,
                    needs_labels=not own and method.loss_of(stream) is None,
                    own_forward=self._has_own_compute_loss,
                )
                if not own and method.loss_of(stream) is None:
                    collate = self._get_collator_with_removed_columns(self.data_collator)
                    run.data_checks.check_counted(stream, dataset, collate, lambda features: self._count(features)[0])
        run.data_checks.warn_of_test(self.forget_dataset, self.eval_dataset)

    def _first_forget_sample(self) -> dict:
        collate = self._get_collator_with_removed_columns(self.data_collator)
        return self._prepare_inputs(collate([self.forget_dataset[0]]))

    def _rewind(self, split: str) -> run.Rewind:
        def predict(dataset: Any, prefix: str) -> Any:
            with self._default_accuracy():  # classes, not the logits of a whole split
                return self.predict(dataset, metric_key_prefix=prefix)

        shift, processes = self._loss_shifts_labels, self.accelerator.num_processes
        options = {"predict": predict, "log": self.log, "shift": shift, "processes": processes}
        return run.Rewind(split, self.args, self.eval_dataset, **options)

    def _streams(self) -> data.Streams:
        """As the trainer is now: arguments, collator and labels may be changed between two runs."""
        return data.Streams(
            forget=self.forget_dataset,
            retain=self.retain_dataset,
            names=self.method.streams,
            plan=self.method.plan,
            args=self.args,
            batch_size=self._train_batch_size,
            collate=partial(self._get_collator_with_removed_columns, self.data_collator),
            label_names=self.label_names,
            shift=self._loss_shifts_labels,
            ignored_pixel=self._ignored_pixel,
            seed=_data_seed(self.args),
            processes=self.accelerator.num_processes,
            rank=self.accelerator.process_index,
            classes=getattr(self, "_classes", None),
        )

    @property
    def _ignored_pixel(self) -> int:
        return getattr(getattr(self.model, "config", None), "semantic_loss_ignore_index", -100)

    def _whole_set(self, stream: str, count: int | None, title: str) -> Iterator[tuple[dict, int]]:
        for features, items in self._streams().whole(stream, count, title):
            yield self._prepare_inputs(features), items

    def _compared_sets(self) -> list[run.Overlap]:
        sets = {"forget": self.forget_dataset, "retain": self.retain_dataset, "test": self.eval_dataset.get("test")}
        compare = partial(run.checked_overlaps, sets, self._signature_columns or (), self.label_names)
        first, processes = self.is_world_process_zero(), self.accelerator.num_processes
        return on_first(compare, "The comparison of the sets", first, self.args.device, processes) or []

    def _make_partition(self) -> step.Partition | None:
        batches = self._whole_set("forget", None, "Partition")
        return run.make_partition(
            self.model, self.method, batches, self._losses().plain, self.accelerator.num_processes
        )

    def _begun(self, model: nn.Module, fresh: bool) -> run.ActiveRun:
        """fresh: the optimizer began with this run."""
        context = self._step_context(model)
        update = step.Update(self.optimizer, context.kernels, self.args.max_grad_norm)
        if self.method.frozen:
            update.freeze(context.trainable(), self.partition.masks, fresh)
        run.checks.warn_of_scale_free(self.method, update.optimizer)
        return run.ActiveRun(step.Steps(context, self.method.step), update)

    def _step_context(self, model: nn.Module) -> step.StepContext:
        kernels = step.choose_kernels(self.model, self.args.device, self.args.kernel_backend)
        return step.StepContext(
            model=model,
            module=self.model,
            loss=self._losses(),
            accelerator=self.accelerator,
            kernels=kernels,
            masks=None if self.partition is None else step.packed(self.partition.masks, self.model, kernels),
            sync=self.args.sync_perturbation,
            in_place=step.moves_in_place(self.model, bool(self.args.torch_compile or self.args.in_place)),
            measure=self.args.log_perturbation,
            full_precision=self.args.full_precision_sharpness and self.method.perturbation is not None,
            population=self._population() if self.method.single_step else None,
        )

    def _population(self) -> step.Population:
        def batches(stream: str, count: int | None) -> Iterator[tuple[dict, int]]:
            return self._whole_set(stream, count, f"{type(self.method).__name__}, {stream} set")

        losses, processes = self._losses(), self.accelerator.num_processes
        return step.Population(self.model, batches, losses.plain, losses.logits, processes)

    def _losses(self) -> step.Losses:
        return step.Losses(
            compute=self._compute,
            custom=self.method.loss_of,
            label_names=self.label_names,
            shift=self._loss_shifts_labels,
            context=self.compute_loss_context_manager,
            autocast=self.accelerator.autocast,
            taught=self.method.taught_loss if self.method.teacher else None,
            teacher=self.teacher,
        )

    def _compute(self, model: nn.Module, inputs: dict, items: int, **options: Any) -> Any:
        """`compute_loss` as Trainer calls it; the number of items is that of the micro-batch, because the window weighs
        means of micro-batches. A loss function of the user's is not scaled for several processes, for the same reason.
        """
        reads = self.compute_loss_func is not None or self._has_own_compute_loss
        known = inspect.signature(self.compute_loss).parameters
        if reads and ("num_items_in_batch" in known or any(p.kind is p.VAR_KEYWORD for p in known.values())):
            options["num_items_in_batch"] = torch.tensor(
                max(items, 1), device=self.args.device
            )  # a filler has weight 0
        if self.compute_loss_func is None or self.accelerator.num_processes == 1:
            return self.compute_loss(model, inputs, **options)
        own = copy(self.args)
        own.average_tokens_across_devices = False
        with self._with_arguments(own):
            return self.compute_loss(model, inputs, **options)

    @property
    def _has_own_compute_loss(self) -> bool:
        """A subclass, or somebody, has put another `compute_loss` in place of Trainer's."""
        return getattr(self.compute_loss, "__func__", None) is not Trainer.compute_loss

    def _count(self, inputs: Mapping[str, Any]) -> tuple[int, int]:
        """(items, samples) of a batch of one data set."""
        items = data.count_items(inputs, self.label_names, self._loss_shifts_labels, self._ignored_pixel)
        return items, data.count_items(inputs, (), False)

    def _mean_loss_of(self, dataloader: DataLoader) -> run.MeanLoss:
        dataset, accelerator = getattr(dataloader, "dataset", None), self.accelerator
        size = getattr(getattr(dataloader, "batch_sampler", None), "batch_size", None) or self.args.eval_batch_size
        return run.MeanLoss(
            self._count,
            batch_size=size,
            total=None if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__") else len(dataset),
            processes=accelerator.num_processes,
            rank=accelerator.process_index,
            keep_infinite=not self.args.logging_nan_inf_filter,
        )

    @contextlib.contextmanager
    def _default_accuracy(self) -> Iterator[None]:
        """Without metrics of the user's: the accuracy, of classes that are chosen batch by batch."""
        own = self.compute_metrics, self.preprocess_logits_for_metrics
        if self.compute_metrics is None and not self.args.batch_eval_metrics:
            self.compute_metrics = partial(accuracy, shift=self._loss_shifts_labels)
            self.preprocess_logits_for_metrics = own[1] or predicted_classes
        try:
            yield
        finally:
            self.compute_metrics, self.preprocess_logits_for_metrics = own

    def _facts(self) -> sharing.RunFacts:
        return sharing.RunFacts(
            model=self.model,
            method=self.method,
            args=self.args,
            forget_dataset=self.forget_dataset,
            retain_dataset=self.retain_dataset,
            splits=list(self.eval_dataset or ()),
            log_history=self.state.log_history,
            steps=self.state.global_step,
            partition=self.partition,
            report=self.report,
            resumed=self.resumed,
            overlaps=[overlap.describe(rows=False) for overlap in self.overlaps],
            hub_name=self.hub_name,
            hub_model_id=self.hub_model_id,
            unvisited=self._unvisited(),
            warnings=self._warnings,
        )

    def _unvisited(self) -> int:
        """Forget samples that no step has used; 0 for methods that leave the forget set alone, and before a run."""
        used, steps = self._steps_use_forget_rows, self.state.global_step
        return self._epochs.unvisited(len(self.forget_dataset), steps) if used and self._epochs and steps else 0

    @property
    def _steps_use_forget_rows(self) -> bool:
        return self.forget_dataset is not None and bool(set(self.method.streams) & {"forget", "union"})

    def _complete_weights(self, folder: str) -> None:
        missing, self._not_loaded = self._not_loaded, []
        run.complete_weights(self.model, folder, missing)

    def _refresh_card(self) -> None:
        if self._card.written:
            self.create_model_card()

    @contextlib.contextmanager
    def _with_arguments(self, args: UnlearningArguments) -> Iterator[None]:
        """Other arguments inside the block; the caller's own are never changed."""
        own, self.args = self.args, args
        try:
            yield
        finally:
            self.args = own


def _data_seed(args: UnlearningArguments) -> int:
    return args.seed if args.data_seed is None else args.data_seed
