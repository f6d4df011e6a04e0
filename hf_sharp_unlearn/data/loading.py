"""From slots to micro-batches: data sets, collator and loader of the two streams.

Random augmentation draws from generators seeded by (seed, epoch, position, stream), set before each sample and put back
afterwards: what a sample looks like depends on its place in the run, never on workers, processes or interruptions.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import TrainingArguments
from transformers.trainer_utils import seed_worker

from ..runtime import derive_seed, isolated_rng, seed_host
from .relabel import RandomLabels
from .sampling import Slot
from .sets import COUNTS, Union


def _draws_at_random(dataset: Any) -> bool:
    """A `datasets.Dataset` without a transform of the user's is a plain table: its rows can be fetched in one go."""
    return not hasattr(dataset, "column_names") or getattr(dataset, "format", {}).get("type") == "custom"


def _fetch(dataset: Any, indices: list[int], seeds: Callable[[int], int]) -> list[Any]:
    """Rows of one data set; each is drawn from a generator of its own, so augmentation depends on nothing else."""
    if isinstance(dataset, Union):
        rows: list[Any] = [None] * len(indices)
        for part, offset in ((dataset.retain, 0), (dataset.forget, len(dataset.retain))):
            places = [i for i, index in enumerate(indices) if dataset.is_forget(index) == (part is dataset.forget)]
            own = _fetch(part, [indices[i] - offset for i in places], lambda i, places=places: seeds(places[i]))
            for place, row in zip(places, own, strict=True):
                rows[place] = row
        return rows
    if not indices:
        return []
    if hasattr(dataset, "fetch"):  # `images.ImagesInMemory`: all of them in a few operations
        return dataset.fetch(indices, [seeds(place) for place in range(len(indices))])
    if not _draws_at_random(dataset):
        rows = dataset[indices]
        return [{key: values[i] for key, values in rows.items()} for i in range(len(indices))]
    items = []
    for place, index in enumerate(indices):
        seed_host(seeds(place))
        items.append(dataset[index])
    return items


class StreamDataset(Dataset):
    """Maps slots to samples. Its length is that of the first stream's set."""

    def __init__(self, streams: Mapping[str, Any], seed: int):
        self.streams, self.seed = dict(streams), seed

    def __len__(self) -> int:
        return len(next(iter(self.streams.values())))

    def __getitem__(self, slot: Slot) -> tuple[Slot, Any]:
        return self.__getitems__([slot])[0]

    def __getitems__(self, slots: list[Slot]) -> list[tuple[Slot, Any]]:
        fetched: dict[Slot, Any] = {}
        with isolated_rng():
            for stream, dataset in self.streams.items():
                mine = [slot for slot in slots if slot.stream == stream]
                if mine:
                    rows = _fetch(dataset, [slot.index for slot in mine], lambda i, mine=mine: self.seed_of(mine[i]))
                    fetched.update(zip(mine, rows, strict=True))
        return [(slot, fetched[slot]) for slot in slots]

    def seed_of(self, slot: Slot) -> int:
        return derive_seed(self.seed, slot.epoch, slot.position, slot.stream)


class StreamCollator:
    """Collates each stream by itself and counts its items: {"retain": ..., "forget": ..., "counts": ...}.

    collate: stream -> collator of that stream (unused columns already stripped).
    count: features -> number of items in the loss's mean. relabel: gives the forget samples other labels.
    """

    def __init__(
        self, collate: Mapping[str, Callable], count: Callable[[Any], int], seed: int, relabel: RandomLabels | None
    ):
        self.collate, self.count, self.seed, self.relabel = dict(collate), count, seed, relabel

    def __call__(self, fetched: list[tuple[Slot, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {COUNTS: {}}
        with isolated_rng():  # collators may draw too (masking, padding choices)
            for stream, collate in self.collate.items():
                mine = [(slot, item) for slot, item in fetched if slot.stream == stream]
                if not mine:
                    continue
                slot = mine[0][0]
                seed_host(derive_seed(self.seed, slot.epoch, slot.position, stream, "collate"))
                batch[stream] = collate([item for _, item in mine])
                if self.relabel is not None:
                    self.relabel(batch[stream], [slot for slot, _ in mine])
                batch[COUNTS][stream] = (self.count(batch[stream]), len(mine)) if slot.real else (0, 0)
        return batch


class SeededDataset(Dataset):
    """A data set for evaluation: sample i is drawn from a generator of its own, so that random augmentation neither
    changes from one evaluation to the next nor moves the global generators of the training run."""

    def __init__(self, dataset: Any, seed: int):
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        with isolated_rng():
            return _fetch(self.dataset, list(indices), lambda i: derive_seed(self.seed, "eval", indices[i]))


def stream_loader(
    args: TrainingArguments,
    streams: Mapping[str, Any],
    batch_sampler: Any,
    collate: Mapping[str, Callable],
    count: Callable[[Any], int],
    seed: int,
    relabel: RandomLabels | None = None,
    pin_memory: bool = False,
) -> DataLoader:
    """A loader of micro-batches {stream: features, ..., "counts": ...} with the loader settings of `args`. Its
    length is that of the first stream's set."""
    workers = args.dataloader_num_workers
    return DataLoader(
        StreamDataset(streams, seed),
        batch_sampler=batch_sampler,
        collate_fn=StreamCollator(collate, count, seed, relabel),
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        prefetch_factor=args.dataloader_prefetch_factor,
        # A persistent loader draws its base seed once, not once an epoch: not from the generator of the run, which a
        # resumed run could not bring to the same place.
        generator=torch.Generator().manual_seed(seed) if args.dataloader_persistent_workers else None,
        worker_init_fn=functools.partial(seed_worker, num_workers=workers, rank=args.process_index),
    )


def sized(loader: DataLoader, samples: int) -> DataLoader:
    """The loader with `total_batch_size`, as loaders of Trainer have it: accelerate would compute it from a batch size,
    and a batch of several streams has none. samples: of the first stream, in a micro-batch of all processes."""
    kind = type(loader)
    kind = type(kind.__name__, (kind,), {"total_batch_size": samples, "__module__": kind.__module__})
    object.__dict__["__class__"].__set__(loader, kind)  # accelerate's loaders say that they are torch's, read-only
    return loader
