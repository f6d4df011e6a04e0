"""The two streams: which forget and retain samples make up a step, and how they reach the model.

    position   place in the walk through a data set. Retain: Trainer's own order of the epoch. Forget: passes over the
               forget set, each freshly shuffled, continuing across epochs; no sample comes twice within a pass.
    slot       what the sampler yields: (stream, index, epoch, position). What sits at a position is a pure function
               of (seed, position), so it is the same for any number of workers or processes and after a resume.

A plain data set of pairs cannot do this: its partner sample would have to know the epoch, which data loader workers
and sharded samplers never learn. So the sampler, which runs in the main process, decides everything.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import RandomSampler, Sampler, Subset
from transformers import TrainerCallback

from .rng import derive_seed, isolated_rng, seed_host

COUNTS = "counts"  # key of a micro-batch: stream -> (items, samples)


class Slot(NamedTuple):
    stream: str
    index: int
    epoch: int
    position: int
    real: bool = True  # False: a filler for a process whose share of a ragged batch is empty; it has weight 0


def split_forget(
    dataset: Any, forget_indices: Sequence[int], retain_indices: Sequence[int] | None = None
) -> tuple[Any, Any]:
    """Split a training set into (forget set, retain set).

    dataset: map-style data set with a length; a `datasets.Dataset` gives two of the same kind, anything else two
        `torch.utils.data.Subset`s.
    forget_indices: rows to forget. retain_indices: rows to retain; None means all others.

    Raises ValueError for indices that are empty, repeated, out of range or overlapping, before anything is split.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise ValueError(f"dataset is a {type(dataset).__name__}: pass a map-style data set with a length.")
    total = len(dataset)
    forget = _checked_indices("forget_indices", forget_indices, total)
    if retain_indices is None:
        keep = np.ones(total, dtype=bool)
        keep[forget] = False
        retain = np.flatnonzero(keep)
        if len(retain) == 0:
            raise ValueError(f"forget_indices names all {total} rows: nothing is left to retain. Forget fewer rows.")
    else:
        retain = _checked_indices("retain_indices", retain_indices, total)
        both = np.intersect1d(forget, retain)
        if len(both):
            raise ValueError(
                f"forget_indices and retain_indices overlap in {len(both)} rows, e.g. {both[:5].tolist()}: a row is "
                "either forgotten or retained. Remove them from one of the two."
            )
    if hasattr(dataset, "select") and hasattr(dataset, "column_names"):
        return dataset.select(forget), dataset.select(retain)
    return Subset(dataset, forget.tolist()), Subset(dataset, retain.tolist())


def _checked_indices(name: str, indices: Sequence[int], total: int) -> np.ndarray:
    if not isinstance(indices, torch.Tensor):
        indices = list(indices) if hasattr(indices, "__iter__") else indices
    values = np.asarray(indices.cpu() if isinstance(indices, torch.Tensor) else indices)
    if values.size == 0:
        raise ValueError(f"{name} is empty: name at least one row of the data set.")
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must be a flat sequence of integers, got shape {values.shape} of {values.dtype}. "
            "Turn a boolean mask into indices with numpy.flatnonzero(mask)."
        )
    wrong = values[(values < 0) | (values >= total)]
    if wrong.size:
        raise ValueError(f"{name} is out of range: {wrong[:5].tolist()}; valid rows are 0 to {total - 1}.")
    unique, counts = np.unique(values, return_counts=True)
    if len(unique) < len(values):
        raise ValueError(f"{name} repeats rows, e.g. {unique[counts > 1][:5].tolist()}: name each row once.")
    return values


class Walk:
    """The walk through a set of `size` samples: pass after pass, each in an order of its own."""

    def __init__(self, size: int, seed: int):
        self.size, self.seed = size, seed
        self._pass, self._order = -1, []

    def __getitem__(self, position: int) -> tuple[int, int]:
        """Return (index of the sample, pass) at a position >= 0."""
        number, offset = divmod(position, self.size)
        if number != self._pass:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "forget order", number))
            self._pass, self._order = number, torch.randperm(self.size, generator=generator).tolist()
        return self._order[offset], number


class StreamBatchSampler(Sampler[list[Slot]]):
    """Yields micro-batches of slots; `processes` consecutive ones are one global micro-batch, in rank order.

    order: sampler over the anchor set (the set whose one pass is an epoch). sizes: stream -> samples per process and
    micro-batch; the first stream is the anchor, a second one is the walked forget set. The walk advances in
    proportion to the anchor, so 4 micro-batches of 8 hold the samples of one of 32, at the ragged end of an epoch too.
    """

    def __init__(
        self,
        order: Sampler[int],
        sizes: Mapping[str, int],
        walked: int | None,
        *,
        seed: int,
        processes: int = 1,
        drop_last: bool = False,
    ):
        self.anchor, *others = sizes
        self.size = sizes[self.anchor]
        self.other = others[0] if others else None
        self.other_size = sizes[self.other] if others else 0
        if isinstance(order, RandomSampler) and not isinstance(order, SeedableRandomSampler):
            # What accelerate makes of a RandomSampler: the order of epoch e is that of a plain Trainer run.
            order = SeedableRandomSampler(order.data_source, data_seed=seed)
        self.order = order
        self.walk = Walk(walked, seed) if others else None
        self.seed, self.processes, self.drop_last = seed, processes, drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        group = self.size * self.processes
        groups = len(self.order) // group if self.drop_last else -(-len(self.order) // group)
        return groups * self.processes

    def __iter__(self) -> Iterator[list[Slot]]:
        epoch = self.epoch
        anchor = self._anchor_order(epoch)
        group = self.size * self.processes
        end = len(anchor) // group * group if self.drop_last else len(anchor)
        first = epoch * self._walked(end)
        for low in range(0, end, group):
            high = min(low + group, end)
            shares = [self._share(low, high, rank) for rank in range(self.processes)]
            batches = [
                [Slot(self.anchor, anchor[position], epoch, position, real) for position, real in share]
                for share in shares
            ]
            if self.walk is not None:
                low_walk, high_walk = first + self._walked(low), first + self._walked(high)
                for rank, batch in enumerate(batches):
                    for position, real in self._share(low_walk, high_walk, rank):
                        batch.append(Slot(self.other, *self.walk[position], position, real))
            yield from batches

    def _walked(self, position: int) -> int:
        """How far the walk has come when the anchor stands at `position`: rounded up, so no micro-batch lacks it."""
        return -(-position * self.other_size // self.size)

    def _share(self, low: int, high: int, rank: int) -> list[tuple[int, bool]]:
        """Positions of one process out of [low, high), as even as possible."""
        count = high - low
        share = range(low + rank * count // self.processes, low + (rank + 1) * count // self.processes)
        return [(position, True) for position in share] or [(low, False)]

    def _anchor_order(self, epoch: int) -> list[int]:
        if isinstance(self.order, SeedableRandomSampler):
            self.order.set_epoch(epoch)
            return list(self.order)
        with isolated_rng():  # samplers that draw from the global generator (group_by_length)
            seed_host(derive_seed(self.seed, "order", epoch))
            return list(self.order)


class SamplerEpoch(TrainerCallback):
    """Tells the sampler the epoch. accelerate does so on some paths only: not with several processes, for one."""

    def on_epoch_begin(self, args, state, control, train_dataloader, **kwargs):
        sampler = train_dataloader.batch_sampler
        getattr(sampler, "batch_sampler", sampler).set_epoch(int((state.epoch or 0) + 1e-6))


def count_items(features: Mapping[str, Any], label_names: Sequence[str], shift: bool, ignored_pixel: int = -100) -> int:
    """Number of terms in the mean of the model's loss: samples, or unmasked target tokens.

    Labels of -100 are not counted. shift: position t predicts label t + 1 (causal LM), so the first label of a
    sequence is no target. Maps of labels (batch, height, width) do not count `ignored_pixel`. Float labels (regression,
    multi-label) count as one item per sample.
    """
    labels = features.get("shift_labels") if "shift_labels" in features else None
    if labels is None:
        labels = next((features[name] for name in label_names if features.get(name) is not None), None)
        if labels is not None and shift and labels.ndim > 1:
            labels = labels[..., 1:]
    if isinstance(labels, torch.Tensor) and labels.ndim and not labels.is_floating_point():
        return int((labels != (ignored_pixel if labels.ndim == 3 else -100)).sum())
    tensors = [value for value in features.values() if isinstance(value, torch.Tensor) and value.ndim]
    return len(tensors[0]) if tensors else 1


def evaluation_sets(forget: Any, retain: Any, own: Any, retain_samples: int, seed: int) -> dict[str, Any]:
    """Split name -> data set: forget, a fixed subsample of retain, and the user's own ("test", or its keys)."""
    sets = {name: dataset for name, dataset in (("forget", forget), ("retain", retain)) if dataset is not None}
    if retain is not None and len(retain) > retain_samples:
        generator = torch.Generator().manual_seed(derive_seed(seed, "eval retain"))
        rows = torch.randperm(len(retain), generator=generator)[:retain_samples].sort().values.tolist()
        sets["retain"] = retain.select(rows) if hasattr(retain, "select") else Subset(retain, rows)
    if isinstance(own, Mapping):
        return {**sets, **own}
    return sets if own is None else {**sets, "test": own}
