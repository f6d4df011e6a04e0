"""Epochs of different length: a method's plan may give an epoch more passes than the next one has.

Trainer asks once how many steps an epoch has. `Epochs` answers for each epoch: how many steps a run has, where a
resumed run stands, and how long the epoch is that runs. With equal epochs it says what Trainer would.
"""

import math
from typing import Any

from ..data import StreamBatchSampler


class Epochs:
    """sampler: of the run's loader. single_step: number of samples of both sets, for a method that makes one step."""

    def __init__(self, sampler: StreamBatchSampler, accumulation: int, single_step: int | None = None):
        self._sampler, self._accumulation, self._single_step = sampler, accumulation, single_step

    def training_values(self, values: tuple, args: Any) -> tuple:
        """What `Trainer.set_initial_training_values` returns, with the epochs, steps and samples that the run has."""
        found = list(values)
        if self._single_step is not None:
            epochs, max_steps, found[3] = 1, 1, self._single_step
        elif args.max_steps > 0:
            epochs, max_steps = self._epochs_for(args.max_steps), args.max_steps
        else:
            whole = int(args.num_train_epochs)
            part = (args.num_train_epochs - whole) * self._sampler.updates(whole)
            epochs = math.ceil(args.num_train_epochs)
            max_steps = sum(map(self._sampler.updates, range(whole))) + math.ceil(part)
            found[3] = sum(map(self._sampler.samples, range(epochs)))  # those of a last partial epoch included
        found[0], found[6] = epochs, max_steps
        return tuple(found)

    def position(self, steps: int) -> tuple[int, int]:
        """(epoch, micro-batches into it) after so many optimizer steps."""
        epoch = 0
        while steps >= self._sampler.updates(epoch) > 0:
            steps -= self._sampler.updates(epoch)
            epoch += 1
        return epoch, steps * self._accumulation

    def unvisited(self, size: int, steps: int) -> int:
        """Number of `size` forget samples that so many optimizer steps have not used, at the least."""
        if self._single_step is not None or steps <= 0:
            return 0 if steps > 0 else size
        seen = epoch = 0
        while steps > 0 and seen < size:
            behind = min(steps, self._sampler.updates(epoch))
            share = min(behind * self._accumulation, self._sampler.micro_batches(epoch))
            seen += self._sampler.forgotten(epoch, share)
            steps, epoch = steps - max(behind, 1), epoch + 1
        return max(size - seen, 0)

    def needed(self, size: int) -> int:
        """Epochs after which all of `size` forget samples were used."""
        epoch = seen = 0
        while seen < size and epoch < 1_000_000:
            seen += self._sampler.forgotten(epoch, self._sampler.micro_batches(epoch))
            epoch += 1
        return epoch

    def begin(self, epoch: int) -> dict[str, int]:
        """Make the sampler serve an epoch; its lengths, as `Trainer._run_epoch` takes them."""
        self._sampler.set_epoch(epoch)  # accelerate tells it on some paths only: not with several processes, for one
        return {
            "steps_in_epoch": self._sampler.micro_batches(epoch),
            "num_update_steps_per_epoch": self._sampler.updates(epoch),
        }

    def _epochs_for(self, steps: int) -> int:
        """Number of epochs that are begun within so many steps."""
        epochs = 0
        while steps > 0:
            steps -= max(self._sampler.updates(epochs), 1)
            epochs += 1
        return epochs
