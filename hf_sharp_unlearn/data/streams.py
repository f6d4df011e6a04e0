"""The streams of a run: which data sets they are, the loader that serves them, how their items are counted."""

import functools
from collections.abc import Mapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from .loading import SeededDataset, stream_loader
from .relabel import RandomLabels
from .sampling import StreamBatchSampler
from .sets import Union, count_items


class StreamHooks:
    """Hooks of `Trainer`, mixed into `UnlearningTrainer`."""

    def _dataset_of(self, stream: str) -> Any:
        sets = {"retain": self.retain_dataset, "forget": self.forget_dataset}
        return Union(**sets) if stream == "union" else sets[stream]

    def _stream_size(self, stream: str) -> int:
        """Samples per process and micro-batch."""
        size, forget = self._train_batch_size, self.args.forget_batch_size
        if stream != "forget" or forget is None:
            return size
        # Where auto_find_batch_size has shrunk the retain batch the ratio stays.
        return max(1, round(forget * size / self.args.train_batch_size))

    def get_train_dataloader(self) -> DataLoader:
        streams = {stream: self._dataset_of(stream) for stream in self.method.streams}
        beside = {piece.beside for piece in self.method.plan(0)}
        sampler = StreamBatchSampler(
            {stream: self._get_train_sampler(data) for stream, data in streams.items() if stream not in beside},
            {stream: self._stream_size(stream) for stream in streams},
            self.method.plan,
            walked=len(self.forget_dataset) if "forget" in beside else None,
            seed=self._data_seed,
            processes=self.accelerator.num_processes,
            drop_last=self.args.dataloader_drop_last,
            accumulation=self.args.gradient_accumulation_steps,
        )
        for stream, size in sampler.too_small():
            raise ValueError(
                f"dataloader_drop_last=True: {stream}_dataset has {len(streams[stream])} samples, less than the {size} "
                "of a global batch, so a pass over it would be empty. Lower the batch size or leave drop_last out."
            )
        return self.accelerator.prepare(self._stream_loader(streams, self.method.streams[0], sampler))

    def _stream_loader(self, streams: Mapping[str, Any], anchor: str, batch_sampler: Any) -> DataLoader:
        collate = {name: self._get_collator_with_removed_columns(self.data_collator, name) for name in streams}
        relabel = None
        if "union" in streams and self.method.relabel:
            relabel = RandomLabels(self._classes, len(self.retain_dataset), self.label_names, self._data_seed)
        return stream_loader(
            self.args, streams, anchor, batch_sampler, collate, self._counter(), self._data_seed, relabel
        )

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> DataLoader:
        """Loaders of evaluation and prediction: same samples every time, whatever augmentation they carry."""
        if not isinstance(dataset, IterableDataset) and hasattr(dataset, "__len__"):
            dataset = SeededDataset(dataset, self._data_seed)
        return super()._get_dataloader(dataset, *args, **kwargs)

    def _counted(self, batch: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
        """Items and samples of a micro-batch that did not come from our collator."""
        count = self._counter()
        return {s: (count(batch[s]), count_items(batch[s], (), False)) for s in self.method.streams if s in batch}

    def _counter(self) -> functools.partial:
        """Counts the items of a micro-batch; loader workers get a copy, so it must not hold the trainer."""
        ignored = getattr(getattr(self.model, "config", None), "semantic_loss_ignore_index", -100)
        return functools.partial(
            count_items, label_names=self.label_names, shift=self._loss_shifts_labels, ignored_pixel=ignored
        )
