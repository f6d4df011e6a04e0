"""Epochs of different length: a method's plan may give an epoch more passes than the next one has.

Trainer asks once how many steps an epoch has. These hooks of `Trainer` answer for each epoch: how many steps a run has,
where a resumed run stands, and how long the epoch is that runs. With equal epochs they say what Trainer would.
"""

import math
import os
from typing import Any

from torch.utils.data import DataLoader
from transformers.trainer import TRAINER_STATE_NAME

from ..data import StreamBatchSampler, stream_sampler


class EpochHooks:
    """Hooks of `Trainer`, mixed into `UnlearningTrainer`."""

    _sampler: StreamBatchSampler

    def set_initial_training_values(self, args: Any, dataloader: DataLoader) -> tuple:
        self._sampler = stream_sampler(dataloader)
        values = list(super().set_initial_training_values(args, dataloader))
        if self.method.single_step:
            epochs, max_steps, values[3] = 1, 1, len(self.retain_dataset) + len(self.forget_dataset)
        elif args.max_steps > 0:
            epochs, max_steps = self._epochs_for(args.max_steps), args.max_steps
        else:
            whole = int(args.num_train_epochs)
            part = (args.num_train_epochs - whole) * self._sampler.updates(whole)
            epochs = math.ceil(args.num_train_epochs)
            max_steps = sum(map(self._sampler.updates, range(whole))) + math.ceil(part)
            values[3] = sum(map(self._sampler.samples, range(epochs)))  # those of a last partial epoch included
        values[0], values[6] = epochs, max_steps
        return tuple(values)

    def _epochs_for(self, steps: int) -> int:
        """Number of epochs that are begun within so many steps."""
        epochs = 0
        while steps > 0:
            steps -= max(self._sampler.updates(epochs), 1)
            epochs += 1
        return epochs

    def _init_training_state(
        self, max_steps: int, num_update_steps_per_epoch: int, num_train_epochs: int, resume: Any, trial: Any
    ) -> tuple[int, int]:
        start = super()._init_training_state(max_steps, num_update_steps_per_epoch, num_train_epochs, resume, trial)
        if resume is None or not os.path.isfile(os.path.join(resume, TRAINER_STATE_NAME)):
            return start
        epoch, steps = 0, self.state.global_step
        while steps >= self._sampler.updates(epoch) > 0:
            steps -= self._sampler.updates(epoch)
            epoch += 1
        return epoch, 0 if self.args.ignore_data_skip else steps * self.args.gradient_accumulation_steps

    def _run_epoch(self, *, epoch: int, **values: Any) -> Any:
        self._sampler.set_epoch(epoch)  # accelerate tells it on some paths only: not with several processes, for one
        values["steps_in_epoch"] = self._sampler.micro_batches(epoch)
        values["num_update_steps_per_epoch"] = self._sampler.updates(epoch)
        return super()._run_epoch(epoch=epoch, **values)
