"""The mean loss of an evaluation: over the items of a split, whatever batches and processes they came in.

Trainer averages the means of batches. Two things make that mean depend on how a split was dealt out: batches of a token
model have different numbers of items, and the last batches of several processes are filled up with samples of the
split's beginning. So each batch's mean is weighted by its items, and of a batch with fillers the loss of the real
samples is taken. With one process and samples of equally many items it is Trainer's number, and is left to Trainer.
"""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..runtime import all_sum

logger = logging.getLogger(__name__)


class MeanLoss:
    """Collects the batches of one evaluation.

    count(inputs): items and samples of a batch. batch_size: of each process. total: samples of the split, None where
    that is not known. keep_infinite: count losses that are not finite too (`logging_nan_inf_filter=False`).
    """

    def __init__(
        self,
        count: Callable[[Mapping[str, Any]], tuple[int, int]],
        *,
        batch_size: int,
        total: int | None,
        processes: int,
        rank: int,
        keep_infinite: bool,
    ):
        self._count, self._keep = count, keep_infinite
        self._size, self._total, self._processes, self._rank = batch_size, total, processes, rank
        self._seen, self._uneven = 0, False
        self._first: tuple[int, int] | None = None
        self._losses: list[Tensor] = []
        self._items: list[int] = []

    def add(self, loss: Tensor | None, inputs: Mapping[str, Any], step: Callable[[dict], tuple]) -> None:
        """A batch of this process; its place follows from how many came before. step(inputs): another pass, which
        returns the loss first."""
        if loss is None:
            return
        items, samples = self._count(inputs)
        self._first = self._first or (items, samples)
        self._uneven |= items * self._first[1] != self._first[0] * samples
        real = self._real(samples)
        if 0 < real < samples:
            part = {key: value[:real] if _rows(value) == samples else value for key, value in inputs.items()}
            loss, items = step(part)[0], self._count(part)[0]
        self._losses.append(loss.detach().reshape(()).float())
        self._items.append(items if real else 0)

    def mean(self, device: torch.device) -> float | None:
        """Over all processes, which must ask together; None where it is Trainer's own number, or there is none."""
        if not self._losses or self._processes == 1 and not self._uneven:
            return None
        pairs = list(zip(torch.stack(self._losses).tolist(), self._items, strict=True))
        kept = [(loss, n) for loss, n in pairs if n and (self._keep or math.isfinite(loss))]
        total, items = all_sum(
            [math.fsum(loss * n for loss, n in kept), float(sum(n for _, n in kept))], device, self._processes
        )
        return total / items if items else None

    def _real(self, samples: int) -> int:
        """Samples of the current batch that are no fillers: batches are dealt to the processes one by one."""
        if self._processes == 1 or self._total is None:
            return samples
        first = (self._seen * self._processes + self._rank) * self._size
        self._seen += 1
        return min(max(self._total - first, 0), samples)


def _rows(value: Any) -> int | None:
    return len(value) if isinstance(value, Tensor) and value.ndim else None


def no_better_than_chance(metrics: Mapping[str, Any], prefix: str, classes: int | None) -> list[str]:
    """A sentence, which is logged too, where the model guesses on the retain set: accuracy and loss are those of a
    guess among `classes`, or worse."""
    accuracy, loss = (metrics.get(f"{prefix}_retain_{name}") for name in ("accuracy", "loss"))
    if classes is None or accuracy is None or loss is None or accuracy > 1 / classes or loss <= math.log(classes):
        return []
    text = (
        f"The model is no better than chance on the retain set: accuracy {accuracy:.3g}, mean loss {loss:.3g}, and "
        f"guessing among {classes} classes has {1 / classes:.3g} and {math.log(classes):.3g}. If it was better "
        "before, the run has damaged it: take a smaller learning rate, fewer steps, or a method that holds on to the "
        "retain set."
    )
    logger.warning(text)
    return [text]
