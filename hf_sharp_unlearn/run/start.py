"""What a run takes from the weights that it starts from: the partition, the teacher, whole data sets.

Both are made before the first step. Checkpoints hold the partition, and the teacher's fingerprint; a resume checks them
before it touches a weight.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..data import COUNTS, Slot
from ..runtime import derive_seed, isolated_rng
from ..step import Partition, Population, Teacher, counted_items, gradient_saliency, logits_of, packed
from . import checks

logger = logging.getLogger(__name__)


class StartHooks:
    """Hooks of `Trainer`, mixed into `UnlearningTrainer`."""

    partition: Partition | None = None
    teacher: Teacher | None = None
    _not_loaded: list[str] = []
    _packed: tuple[Partition | None, dict[str, Tensor] | None] = (None, None)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self.resumed = True
        if self.method.fraction is not None:  # checked before any weight is touched
            partition = Partition.load(resume_from_checkpoint)
            source = f"The partition in resume_from_checkpoint={resume_from_checkpoint!r}"
            partition.check(self.model, self.method.fraction, source)
            self.partition = partition.to(self.model)
        if self.method.teacher:
            if self.teacher is None or not self.teacher.made(resume_from_checkpoint):
                self.teacher = None  # before the next one: never two copies
                teacher = Teacher(self._bare_model())
                teacher.check(resume_from_checkpoint)
                self.teacher = teacher
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._complete_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._complete_weights(self.state.best_model_checkpoint)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        self._not_loaded = list(load_result.missing_keys)

    def _complete_weights(self, folder: str) -> None:
        """Load what Trainer could not: it reads a checkpoint under the names that the weights have today, and
        `save_pretrained` has written those of models (ViT, Swin, ...) whose weights were renamed under their old ones.

        Raises ValueError if weights are missing: going on would mix them with those of another model.
        """
        missing, self._not_loaded = self._not_loaded, []
        weights = dict(self.model.state_dict(keep_vars=True))
        loaded = {weights[name].data_ptr() for name in weights.keys() - set(missing)}  # tied ones are saved once
        missing = [name for name in missing if name in weights and weights[name].data_ptr() not in loaded]
        if not missing:
            return
        if isinstance(self.model, PreTrainedModel):
            saved, found = type(self.model).from_pretrained(folder, dtype=self.model.dtype, output_loading_info=True)
            missing = sorted(found["missing_keys"])
            if not missing:
                self.model.load_state_dict(saved.state_dict())
                return
        raise ValueError(
            f"The checkpoint {folder!r} does not hold {len(missing)} weights of the model, e.g. {missing[0]!r}: it was "
            "made with another model."
        )

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        self._loss_sums, self._cosines = {}, []
        self._forget_report()
        self._choose_kernels()  # again: `model_init` may have made another model
        if resume_from_checkpoint is None:
            if self.method.fraction is not None:
                self.partition = self._make_partition()
                logger.info("Partition\n%s", self.partition.summary())
            if self.method.teacher:
                self.teacher = None  # before the next one: never two copies
                self.teacher = Teacher(self._bare_model())
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        if self.method.frozen:
            self._freeze_outside(optimizer)
        if self.method.disjoint and checks.is_scale_free(optimizer):
            warnings.warn(
                f"{type(optimizer).__name__} makes its steps independent of the scale of the gradient, and with "
                f"overlap=False each parameter follows one stream only: alpha={self.method.alpha} has no effect. Use "
                "optim='sgd', overlap=True, or lam_retain and lam_forget.",
                stacklevel=2,
            )
        return prepared

    def _bare_model(self) -> nn.Module:
        # Called before accelerate wraps the model on the first run; on a second run its autocast is taken off.
        return self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    def _make_partition(self) -> Partition:
        with isolated_rng():  # loaders draw their base seed from the generator of the run
            saliency = gradient_saliency(
                self._bare_model(),
                self._whole_set("forget", None, "Partition"),
                lambda module, inputs: self._model_loss(module, "forget", dict(inputs)),
                self.accelerator.num_processes,
            )
        return Partition.from_saliency(saliency, self.method.fraction)

    def _packed_masks(self) -> dict[str, Tensor] | None:
        if self._packed[0] is not self.partition:
            self._packed = (self.partition, packed(self.partition.masks, self.model, self._kernels))
        return self._packed[1]

    def _whole_set(self, stream: str, count: int | None, title: str) -> Iterator[tuple[Any, int]]:
        """(inputs, items) of this process's share of a whole set, or of `count` samples of it, always the same ones."""
        dataset, size = self._dataset_of(stream), self._stream_size(stream)
        rows = range(len(dataset))
        if count is not None and count < len(dataset):
            generator = torch.Generator().manual_seed(derive_seed(self._data_seed, "whole set", stream))
            rows = torch.randperm(len(dataset), generator=generator)[:count].sort().values.tolist()
        slots = [Slot(stream, index, 0, index) for index in rows]
        batches = [slots[low : low + size] for low in range(0, len(slots), size)]
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        loader = self._stream_loader({stream: dataset}, stream, batches[rank::processes])
        for batch in tqdm(loader, desc=title, disable=self.args.disable_tqdm or rank > 0, leave=False):
            yield self._prepare_inputs(batch[stream]), batch[COUNTS][stream][0]

    def _population(self) -> Population | None:
        """For a method that makes one step: the whole sets, in full precision as for the partition."""
        if not self.method.single_step:
            return None

        def logits(module: nn.Module, inputs: Any) -> tuple[Tensor, Tensor]:
            found = logits_of(module(**inputs))
            return found, counted_items(inputs, found, self.label_names, self._loss_shifts_labels)

        return Population(
            self._bare_model(),
            lambda stream, count: self._whole_set(stream, count, f"{type(self.method).__name__}, {stream} set"),
            lambda module, stream, inputs: self._model_loss(module, stream, dict(inputs)),
            logits,
            self.accelerator.num_processes,
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.args.should_save:
            folder = os.path.join(
                self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            )
            for kept in (self.partition, self.teacher):
                if kept is not None:
                    kept.save(folder)
        super()._save_checkpoint(model, trial)
