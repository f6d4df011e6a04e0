"""`UnlearningTrainer`: transformers.Trainer on two streams.

Trainer keeps its loop, optimizers, schedulers, clipping, logging, callbacks, checkpoints and evaluation. What is added:

    data         `get_train_dataloader` serves micro-batches {"retain": ..., "forget": ...} (see `data`)
    step         `get_batch_samples` stashes the window, `training_step` lets the method run over it (see `window`)
    update       a one-sweep optimizer step for methods with a partition (see `update`)
    partition    made before the first step, saved in every checkpoint, checked on resume (see `partition`)
    evaluation   forget and retain sets are evaluated beside the user's own
"""

import contextlib
import functools
import logging
import os
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from tqdm.auto import tqdm
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from . import checks
from .arguments import UnlearningArguments
from .data import COUNTS, SamplerEpoch, Slot, StreamBatchSampler, count_items, evaluation_sets
from .loading import SeededDataset, stream_loader
from .methods import Method, resolve_method
from .metrics import accuracy, predicted_classes
from .partition import Partition, gradient_saliency
from .recovery import Attempt
from .rng import isolated_rng
from .sweeps import packed
from .update import UpdateHooks
from .window import Window

logger = logging.getLogger(__name__)


class UnlearningTrainer(UpdateHooks, Trainer):
    """A `transformers.Trainer` that makes a trained model forget.

    Takes what `Trainer` takes, except `train_dataset`, and

    method: a `Method`, e.g. SharpMinMax(alpha=0.97), or its name in METHODS.
    forget_dataset, retain_dataset: map-style data sets of disjoint samples; a method that uses one stream only runs
        without the other.
    eval_dataset: one data set, reported as `eval_test_*`, or a dict of them, reported under its keys. `evaluate` always
        reports `eval_forget_*` and `eval_retain_*` (a fixed subsample of `args.eval_retain_samples`) too, each with
        its `_loss`, `_accuracy` (unless `compute_metrics` is given) and number of `_samples`.

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
        **trainer_kwargs: Any,
    ):
        args = UnlearningArguments("tmp_trainer") if args is None else args
        self.method = resolve_method(method)
        self.forget_dataset, self.retain_dataset = forget_dataset, retain_dataset
        streams = {"retain": retain_dataset, "forget": forget_dataset}
        checks.check_arguments(args, train_dataset, self.method)
        checks.check_datasets(self.method, streams)
        if model is not None:
            checks.check_model(model, self.method)
        self._data_seed = args.seed if args.data_seed is None else args.data_seed
        self.partition: Partition | None = None
        self._packed: tuple[Partition | None, dict[str, Tensor] | None] = (None, None)
        self._shadows: dict[int, Tensor] = {}
        self._window: list[dict] = []
        self._last_window: Window | None = None
        self._loss_sums: dict[str, Tensor] = {}
        self._loss_steps = 0
        self._cosines: list[float] = []
        super().__init__(
            model,
            args,
            data_collator,
            streams[self.method.streams[0]],
            evaluation_sets(forget_dataset, retain_dataset, eval_dataset, args.eval_retain_samples, self._data_seed),
            *trainer_args,
            **trainer_kwargs,
        )
        checks.check_hardware(args, self.accelerator, self.model)
        checks.check_model(self.model, self.method)
        self._choose_kernels()
        checks.check_best_metric(args.metric_for_best_model, list(self.eval_dataset))
        for stream, dataset in streams.items():
            if dataset is not None:
                checks.check_samples(self, stream, dataset, self.method.loss_of(stream) is not None)
        self.model_accepts_loss_kwargs = False  # a window's losses are means of its own making (see `window`)
        if self.compute_metrics is None and not args.batch_eval_metrics:
            self.compute_metrics = functools.partial(accuracy, shift=self._loss_shifts_labels)
            if self.preprocess_logits_for_metrics is None:
                self.preprocess_logits_for_metrics = predicted_classes
        self.add_callback(SamplerEpoch())

    # ---- data ----

    def _stream_sizes(self) -> dict[str, int]:
        """Stream -> samples per process and micro-batch, for the streams that the method forwards."""
        retain = self._train_batch_size
        sizes = {"retain": retain, "forget": self._forget_size()}
        return {stream: sizes[stream] for stream in self.method.streams}

    def _forget_size(self) -> int:
        retain, forget = self._train_batch_size, self.args.forget_batch_size
        # Where auto_find_batch_size has shrunk the retain batch the ratio stays.
        return retain if forget is None else max(1, round(forget * retain / self.args.train_batch_size))

    def get_train_dataloader(self) -> DataLoader:
        sizes = self._stream_sizes()
        streams = {stream: getattr(self, f"{stream}_dataset") for stream in sizes}
        anchor = next(iter(sizes))
        sampler = StreamBatchSampler(
            self._get_train_sampler(streams[anchor]),
            sizes,
            walked=len(self.forget_dataset) if len(sizes) == 2 else None,
            seed=self._data_seed,
            processes=self.accelerator.num_processes,
            drop_last=self.args.dataloader_drop_last,
        )
        return self.accelerator.prepare(self._stream_loader(streams, anchor, sampler))

    def _stream_loader(self, streams: Mapping[str, Any], anchor: str, batch_sampler: Any) -> DataLoader:
        collate = {name: self._get_collator_with_removed_columns(self.data_collator, name) for name in streams}
        return stream_loader(self.args, streams, anchor, batch_sampler, collate, self._counter(), self._data_seed)

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> DataLoader:
        """Loaders of evaluation and prediction: same samples every time, whatever augmentation they carry."""
        if not isinstance(dataset, IterableDataset) and hasattr(dataset, "__len__"):
            dataset = SeededDataset(dataset, self._data_seed)
        return super()._get_dataloader(dataset, *args, **kwargs)

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
            [self._prepare_inputs(batch if COUNTS in batch else self._counted(batch)) for batch in window],
            self._stream_loss,
            self.accelerator,
            masks=self._packed_masks(),
            shadows=self._shadows,
            kernels=self._kernels,
            sync_perturbation=self.args.sync_perturbation,
            in_place=self._in_place,
            measure=self.args.log_perturbation,
            step=self.state.global_step + 1,
        )
        objective = self._last_window.run(self.method.step)
        for stream, loss in self._last_window.stream_losses.items():
            self._loss_sums[stream] = self._loss_sums.get(stream, 0) + loss
        self._loss_steps += 1
        self._cosines += self._last_window.sweeps.cosines
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()
        return objective

    def _packed_masks(self) -> dict[str, Tensor] | None:
        if self._packed[0] is not self.partition:
            self._packed = (self.partition, packed(self.partition.masks, self.model, self._kernels))
        return self._packed[1]

    def _stream_loss(self, model: nn.Module, stream: str, inputs: dict) -> Tensor:
        custom = self.method.loss_of(stream)
        rows = count_items(inputs, (), False)
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs) if custom is None else custom(model(**inputs), inputs)
        return checks.checked_loss(loss, rows, stream)

    def _counted(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A micro-batch that did not come from our collator."""
        count = self._counter()
        counts = {s: (count(batch[s]), count_items(batch[s], (), False)) for s in self.method.streams}
        return {**batch, COUNTS: counts}

    def _counter(self) -> functools.partial:
        """Counts the items of a micro-batch; loader workers get a copy, so it must not hold the trainer."""
        ignored = getattr(getattr(self.model, "config", None), "semantic_loss_ignore_index", -100)
        return functools.partial(
            count_items, label_names=self.label_names, shift=self._loss_shifts_labels, ignored_pixel=ignored
        )

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
            self._last_window = None  # it knows where the weights lay
            self._unstage()

    # ---- the partition ----

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.method.fraction is not None:  # checked before any weight is touched
            partition = Partition.load(resume_from_checkpoint)
            source = f"The partition in resume_from_checkpoint={resume_from_checkpoint!r}"
            partition.check(self.model, self.method.fraction, source)
            self.partition = partition.to(self.model)
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _prepare_for_training(self, max_steps: int, train_dataloader: DataLoader, resume_from_checkpoint: Any) -> Any:
        self._loss_sums, self._loss_steps, self._cosines = {}, 0, []
        self._choose_kernels()  # again: `model_init` may have made another model
        if self.method.fraction is not None and resume_from_checkpoint is None:
            self.partition = self._make_partition()
            logger.info("Partition\n%s", self.partition.summary())
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        if self.method.disjoint and checks.is_scale_free(optimizer):
            warnings.warn(
                f"{type(optimizer).__name__} makes its steps independent of the scale of the gradient, and with "
                f"overlap=False each parameter follows one stream only: alpha={self.method.alpha} has no effect. Use "
                "optim='sgd', overlap=True, or lam_retain and lam_forget.",
                stacklevel=2,
            )
        return prepared

    def _make_partition(self) -> Partition:
        size = self._forget_size()
        slots = [Slot("forget", index, 0, index) for index in range(len(self.forget_dataset))]
        batches = [slots[low : low + size] for low in range(0, len(slots), size)]
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        # Called before accelerate wraps the model on the first run; on a second run its autocast is taken off.
        module = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        with isolated_rng():
            loader = self._stream_loader({"forget": self.forget_dataset}, "forget", batches[rank::processes])
            loader = tqdm(loader, desc="Partition", disable=self.args.disable_tqdm or rank > 0, leave=False)
            inputs = ((self._prepare_inputs(batch["forget"]), batch[COUNTS]["forget"][0]) for batch in loader)
            saliency = gradient_saliency(
                module, inputs, lambda m, x: self._stream_loss(m, "forget", dict(x)), processes
            )
        return Partition.from_saliency(saliency, self.method.fraction)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.partition is not None and self.args.should_save:
            folder = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            self.partition.save(os.path.join(self._get_output_dir(trial=trial), folder))
        super()._save_checkpoint(model, trial)

    # ---- evaluation and logs ----

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        # Persistent loaders draw from the global generator at their first use only: see `loading.stream_loader`.
        with isolated_rng() if self.args.dataloader_persistent_workers else contextlib.nullcontext():
            output = super().evaluation_loop(*args, **kwargs)
        output.metrics[f"{kwargs.get('metric_key_prefix', 'eval')}_samples"] = output.num_samples
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._loss_steps and {"loss", "learning_rate"} <= logs.keys():  # Trainer's own training log, on all ranks
            for stream in sorted(self._loss_sums):
                mean = self.accelerator.reduce(self._loss_sums[stream] / self._loss_steps, reduction="mean")
                logs[f"loss_{stream}"] = mean.item()
            if self._cosines:
                logs["perturbation_cosine"] = sum(self._cosines) / len(self._cosines)
            self._loss_sums, self._loss_steps, self._cosines = {}, 0, []
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict) -> int:
        streams = [inputs[stream] for stream in self.method.streams if stream in inputs]
        return self.method.passes * sum(super(UnlearningTrainer, self).floating_point_ops(batch) for batch in streams)

    def _track_num_input_tokens(self, inputs: dict) -> None:
        for stream in self.method.streams:
            if stream in inputs:
                super()._track_num_input_tokens(inputs[stream])
