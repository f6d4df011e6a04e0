"""`UnlearningTrainer`: transformers.Trainer on two streams.

Trainer keeps its loop, optimizers, schedulers, clipping, logging, callbacks, checkpoints and evaluation. What is added:

    data         `get_train_dataloader` serves micro-batches {"retain": ..., "forget": ...} (see `streams`)
    epochs       a method's plan may give one epoch more passes than another (see `epochs`)
    start        partition and teacher, taken from the starting weights, kept in checkpoints (see `starting`)
    step         `get_batch_samples` stashes the window, `training_step` lets the method run over it (see `window`)
    update       a one-sweep optimizer step for methods with a partition, frozen weights (see `update`)
    evaluation   forget and retain sets are evaluated beside the user's own
    sharing      the card, and pushes to the Hub (see `publishing`)
"""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn
from transformers import Trainer

from .arguments import UnlearningArguments
from .data import COUNTS, StreamHooks, count_items, evaluation_sets
from .methods import Method, resolve_method
from .metrics import accuracy, predicted_classes
from .report import UnlearningReport, evaluate_unlearning
from .run import Attempt, EpochHooks, Rewind, StartHooks, checks, classes_to_draw
from .runtime import all_true, isolated_rng
from .sharing import PublishHooks
from .step import UpdateHooks, Window, counted_items, logits_of


class UnlearningTrainer(StreamHooks, StartHooks, EpochHooks, UpdateHooks, PublishHooks, Trainer):
    """A `transformers.Trainer` that makes a trained model forget.

    Takes what `Trainer` takes, except `train_dataset`, and

    method: a `Method`, e.g. SharpMinMax(alpha=0.97), or its name in METHODS.
    forget_dataset, retain_dataset: map-style data sets of disjoint samples; a method that uses one stream only runs
        without the other.
    eval_dataset: one data set, reported as `eval_test_*` (what `evaluate` returns has it as `eval_*` too, for scripts
        that were written for `Trainer`), or a dict of them, reported under its keys. `evaluate` always
        reports `eval_forget_*` and `eval_retain_*` (a fixed subsample of `args.eval_retain_samples`) too, each with
        its `_loss`, `_accuracy` (unless `compute_metrics` is given) and number of `_samples`.

    forget_indices: rows of the forget set in the training data, for the commitment on the model card; what
        `split_forget` made knows its own.

    Raises ValueError for input that cannot work before any work starts, FloatingPointError when a step meets a
    non-finite loss or norm (weights are then as before the step).
    """

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
        self._one_test_set = eval_dataset is not None and not isinstance(eval_dataset, Mapping)
        self.forget_indices = checks.check_forget_indices(forget_indices, forget_dataset)
        self._card_options: dict[str, Any] = {}
        streams = {"retain": retain_dataset, "forget": forget_dataset}
        checks.check_arguments(args, train_dataset, self.method)
        checks.check_datasets(self.method, streams)
        checks.check_loaders(args, streams)
        if model is not None:
            checks.check_model(model, self.method)
        self.args = args
        self._check_push(model)
        self._data_seed = args.seed if args.data_seed is None else args.data_seed
        self._shadows: dict[int, Tensor] = {}
        self._window: list[dict] = []
        self._last_window: Window | None = None
        self._loss_sums: dict[str, tuple[Tensor, int]] = {}  # stream -> sum of its losses, steps that had it
        self._cosines: list[float] = []
        super().__init__(
            model,
            args,
            data_collator,
            self._dataset_of(self.method.streams[0]),
            evaluation_sets(forget_dataset, retain_dataset, eval_dataset, args.eval_retain_samples, self._data_seed),
            *trainer_args,
            **trainer_kwargs,
        )
        checks.check_hardware(args, self.accelerator, self.model)
        checks.check_model(self.model, self.method)
        self._choose_kernels()
        if self.method.single_step:
            checks.check_single_step(self)
        checks.check_best_metric(args.metric_for_best_model, list(self.eval_dataset))
        for stream, dataset in streams.items():
            if dataset is not None:
                checks.check_samples(self, stream, dataset, self.method.loss_of(stream) is not None)
        self._classes = classes_to_draw(self) if self.method.relabel else None
        self.model_accepts_loss_kwargs = False  # a window's losses are means of its own making (see `window`)
        if self.compute_metrics is None and not args.batch_eval_metrics:
            self.compute_metrics = functools.partial(accuracy, shift=self._loss_shifts_labels)
            if self.preprocess_logits_for_metrics is None:
                self.preprocess_logits_for_metrics = predicted_classes
        if self.method.rewind is not None:
            self.add_callback(Rewind(self, self.method.rewind))

    # ---- the step ----

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        self._window, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return self._window, None

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch: Any = None) -> Tensor:
        """Zero for all but the last micro-batch of a window; there the method runs over the whole window.

        Returns this process's share of the window's objective. On return `.grad` holds the step's gradient and the
        weights are what they were.
        """
        window = self._window if any(inputs is batch for batch in self._window) else [inputs]
        if inputs is not window[-1]:
            return torch.zeros((), device=self.args.device)
        self._window = []
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        self._last_window = Window(
            model,
            self.model,
            [
                self._prepare_inputs(batch if COUNTS in batch else {**batch, COUNTS: self._counted(batch)})
                for batch in window
            ],
            self._stream_loss,
            self.accelerator,
            masks=self._packed_masks(),
            shadows=self._shadows,
            kernels=self._kernels,
            sync_perturbation=self.args.sync_perturbation,
            in_place=self._in_place,
            measure=self.args.log_perturbation,
            step=self.state.global_step + 1,
            progress=self.state.global_step / max(self.state.max_steps, 1),
            population=self._population(),
        )
        objective = self._last_window.run(self.method.step)
        for stream, loss in self._last_window.stream_losses.items():
            total, steps = self._loss_sums.get(stream, (0, 0))
            self._loss_sums[stream] = total + loss, steps + 1
        self._cosines += self._last_window.sweeps.cosines
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()
        return objective

    def _model_loss(self, model: nn.Module, stream: str, inputs: dict) -> Tensor:
        """The model's own loss on a micro-batch, or the method's `forget_loss` or `retain_loss`."""
        custom = self.method.loss_of(stream)
        rows = count_items(inputs, (), False)
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs) if custom is None else custom(model(**inputs), inputs)
        return checks.checked_loss(loss, rows, stream)

    def _stream_loss(self, model: nn.Module, stream: str, inputs: dict) -> Tensor:
        """What the method's objective weighs: the model's loss, or what the method makes of it and of the teacher."""
        if not self.method.teacher:
            return self._model_loss(model, stream, inputs)
        custom = self.method.loss_of(stream)
        with self.compute_loss_context_manager():
            if custom is None:
                loss, outputs = self.compute_loss(model, dict(inputs), return_outputs=True)
            else:
                loss = custom(outputs := model(**inputs), inputs)
            if loss.numel() != 1:
                raise ValueError(
                    f"The {stream} loss has shape {tuple(loss.shape)}: {type(self.method).__name__} adds it to a mean "
                    "over the items, so return that mean, a scalar."
                )
            with self.accelerator.autocast():
                taught = self.teacher(inputs)
            items = counted_items(inputs, logits_of(outputs), self.label_names, self._loss_shifts_labels)
            return self.method.taught_loss(stream, loss, outputs, taught, items)

    def _inner_training_loop(self, batch_size: int | None = None, **kwargs: Any) -> Any:
        own = self.optimizer, self.lr_scheduler
        start = Attempt(self.model, list(own), self.args.device) if self.args.auto_find_batch_size else None
        try:
            return super()._inner_training_loop(batch_size=batch_size, **kwargs)
        except Exception as error:
            if start is not None and should_reduce_batch_size(error):
                start.undo()
                self.optimizer, self.lr_scheduler = own
            raise
        finally:
            self._shadows.clear()
            self._unfreeze()
            self._last_window = None  # it knows where the weights lay
            self._unstage()

    # ---- evaluation and logs ----

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        # Persistent loaders draw from the global generator at their first use only: see `loading.stream_loader`.
        with isolated_rng() if self.args.dataloader_persistent_workers else contextlib.nullcontext():
            output = super().evaluation_loop(*args, **kwargs)
        output.metrics[f"{kwargs.get('metric_key_prefix', 'eval')}_samples"] = output.num_samples
        return output

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = super().evaluate(eval_dataset, *args, **kwargs)
        if eval_dataset is None and self._one_test_set:
            prefix = kwargs.get("metric_key_prefix", args[1] if len(args) > 1 else "eval")
            start = f"{prefix}_test_"
            own = {f"{prefix}_{key.removeprefix(start)}": metrics[key] for key in metrics if key.startswith(start)}
            metrics = {**own, **metrics}
        return metrics

    def evaluate_unlearning(
        self, reference: nn.Module | None = None, output_dir: str | None = None, **options: Any
    ) -> UnlearningReport | None:
        """The whole report on the model as it is now: see `report.evaluate_unlearning`, which has the `options`.

        reference: a model retrained without the forget set, on the same device. output_dir: where report.json,
        report.md and the plots are written; None writes nothing. Sets are those of `evaluate`, the test set the one
        called "test".

        In a distributed run the first process does the work and returns the report; the others wait, at most
        `ddp_timeout` seconds, and return None.
        """
        report, error = None, None
        if self.is_world_process_zero():
            sets = {split: self.eval_dataset.get(split) for split in ("forget", "retain", "test")}
            settings = {
                "batch_size": self.args.eval_batch_size,
                "collator": self._get_collator_with_removed_columns(self.data_collator, "evaluation"),
                "label_names": tuple(self.label_names),
                "seed": self._data_seed,
                "progress": not self.args.disable_tqdm,
            }
            try:
                report = evaluate_unlearning(self.model, reference=reference, **{**sets, **settings, **options})
                if output_dir is not None:
                    report.save(output_dir)
            except BaseException as raised:
                error = raised
        # The others wait here, for `ddp_timeout` seconds at most, and must not wait for a process that has failed.
        done = all_true(error is None, self.args.device, self.accelerator.num_processes)
        if error is not None:
            raise error
        if not done:
            raise RuntimeError("The report failed on the first process: see its error.")
        if report is not None:
            self.report = report
            self._refresh_card()
        return report

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._loss_sums and {"loss", "learning_rate"} <= logs.keys():  # Trainer's own training log, on all ranks
            for stream, (total, steps) in sorted(self._loss_sums.items()):
                mean = self.accelerator.reduce(total / steps, reduction="mean")
                logs[f"loss_{stream}"] = mean.item()
            if self._cosines:
                logs["perturbation_cosine"] = sum(self._cosines) / len(self._cosines)
            self._loss_sums, self._cosines = {}, []
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict) -> int:
        streams = [inputs[stream] for stream in self.method.streams if stream in inputs]
        return self.method.passes * sum(super(UnlearningTrainer, self).floating_point_ops(batch) for batch in streams)

    def _track_num_input_tokens(self, inputs: dict) -> None:
        for stream in self.method.streams:
            if stream in inputs:
                super()._track_num_input_tokens(inputs[stream])
