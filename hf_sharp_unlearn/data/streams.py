"""The streams of a run: which data sets they are, the loaders that serve them, how their items are counted."""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from transformers import TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from ..runtime import derive_seed, progress_bar
from .images import ImagesInMemory
from .loading import stream_loader
from .relabel import RandomLabels
from .sampling import Pass, Slot, StreamBatchSampler
from .sets import COUNTS, Union, count_items


@dataclass(frozen=True, kw_only=True)
class Streams:
    """forget, retain: the sets, or None. names: the streams of a method, in its order. plan(epoch): its passes.

    args: for batch sizes and loaders. batch_size: retain samples per process and micro-batch that are in force.
    collate(stream): collator of a stream, unused columns already stripped. label_names, shift, ignored_pixel: see
    `sets.count_items`. seed: of everything that is drawn. processes, rank: number of processes, and which one this is.
    classes: number of classes that random labels are drawn from, for a method that relabels.
    """

    forget: Any
    retain: Any
    names: tuple[str, ...]
    plan: Callable[[int], tuple[Pass, ...]]
    args: TrainingArguments
    batch_size: int
    collate: Callable[[str], Callable]
    label_names: list[str]
    shift: bool
    ignored_pixel: int
    seed: int
    processes: int
    rank: int
    classes: int | None = None

    def dataset(self, stream: str) -> Any:
        return dataset_of(stream, self.forget, self.retain)

    def size(self, stream: str) -> int:
        """Samples per process and micro-batch."""
        forget = self.args.forget_batch_size
        if stream != "forget" or forget is None:
            return self.batch_size
        # Where auto_find_batch_size has shrunk the retain batch the ratio stays.
        return max(1, round(forget * self.batch_size / self.args.train_batch_size))

    def train_loader(self, order: Callable[[Any], Sampler]) -> DataLoader:
        """The loader of a run. order(data set): Trainer's sampler for it.

        Raises ValueError where `dataloader_drop_last` would leave nothing of a pass.
        """
        sets = {stream: self.dataset(stream) for stream in self.names}
        beside = {piece.beside for piece in self.plan(0)}
        sampler = StreamBatchSampler(
            {stream: order(data) for stream, data in sets.items() if stream not in beside},
            {stream: self.size(stream) for stream in sets},
            self.plan,
            walked=len(self.forget) if "forget" in beside else None,
            seed=self.seed,
            processes=self.processes,
            drop_last=self.args.dataloader_drop_last,
            accumulation=self.args.gradient_accumulation_steps,
        )
        for stream, size in sampler.too_small():
            raise ValueError(
                f"dataloader_drop_last=True: {stream}_dataset has {len(sets[stream])} samples, less than the {size} "
                "of a global batch, so a pass over it would be empty. Lower the batch size or leave drop_last out."
            )
        return self._loader(sets, sampler)

    def whole(self, stream: str, count: int | None, title: str) -> Iterator[tuple[Any, int]]:
        """(features, items) of this process's share of a whole set, or of `count` samples of it, always the same."""
        dataset, size = self.dataset(stream), self.size(stream)
        rows = range(len(dataset))
        if count is not None and count < len(dataset):
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "whole set", stream))
            rows = torch.randperm(len(dataset), generator=generator)[:count].sort().values.tolist()
        slots = [Slot(stream, index, 0, index) for index in rows]
        batches = [slots[low : low + size] for low in range(0, len(slots), size)]
        loader = self._loader({stream: dataset}, batches[self.rank :: self.processes])
        hidden = self.args.disable_tqdm or self.rank > 0
        for batch in progress_bar(loader, desc=title, disable=hidden, leave=False):
            yield batch[stream], batch[COUNTS][stream][0]

    def counted(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The micro-batch with the items and samples of its streams, if it did not come from our collator."""
        if COUNTS in batch:
            return batch
        items = self._counter()
        counts = {s: (items(batch[s]), count_items(batch[s], (), False)) for s in self.names if s in batch}
        if not counts:
            raise ValueError(
                f"A micro-batch of {sorted(batch)} has none of the streams {list(self.names)}: its step would do "
                f"nothing. Pass {{{self.names[0]!r}: features}}, or a batch of get_train_dataloader()."
            )
        return {**batch, COUNTS: counts}

    def _loader(self, sets: Mapping[str, Any], batch_sampler: Any) -> DataLoader:
        relabel = None
        if "union" in sets and self.classes is not None:
            relabel = RandomLabels(self.classes, len(self.retain), self.label_names, self.seed)
        collate = {stream: self.collate(stream) for stream in sets}
        pin = pins_memory(self.args, self.forget, self.retain)
        return stream_loader(self.args, sets, batch_sampler, collate, self._counter(), self.seed, relabel, pin)

    def _counter(self) -> functools.partial:
        """Counts the items of a micro-batch; loader workers get a copy, so it must not hold a model."""
        names, shift, pixel = self.label_names, self.shift, self.ignored_pixel
        return functools.partial(count_items, label_names=names, shift=shift, ignored_pixel=pixel)


def dataset_of(stream: str, forget: Any, retain: Any) -> Any:
    """The data set of a stream: "forget", "retain", or "union", both as one."""
    return Union(retain, forget) if stream == "union" else {"retain": retain, "forget": forget}[stream]


def length_grouped(dataset: Any, args: TrainingArguments) -> Sampler | None:
    """Trainer's sampler for `group_by_length` over a union whose sets have a column of lengths; None otherwise.
    (Trainer knows such columns of a table only, and would load every sample of anything else.)"""
    parts = (dataset.retain, dataset.forget) if isinstance(dataset, Union) else ()
    column = args.length_column_name
    if args.train_sampling_strategy != "group_by_length" or not parts:
        return None
    if not all(column in getattr(part, "column_names", ()) for part in parts):
        return None
    lengths = [int(length) for part in parts for length in part.with_format(None)[column][:]]
    return LengthGroupedSampler(args.train_batch_size * args.gradient_accumulation_steps, lengths=lengths)


def pins_memory(args: TrainingArguments, *datasets: Any) -> bool:
    """What `dataloader_pin_memory` can mean here: on a CPU nothing is pinned (torch would warn of it in every run), nor
    are images that lie on an accelerator already."""
    on_device = any(isinstance(data, ImagesInMemory) and data.device.type != "cpu" for data in datasets)
    return bool(args.dataloader_pin_memory) and args.device.type != "cpu" and not on_device
