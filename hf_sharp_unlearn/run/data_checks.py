"""Which data sets, rows and samples a run is refused for, before any work: what, its value, and the remedy."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import IterableDataset, Subset
from transformers import TrainingArguments

from ..data import ImagesInMemory
from ..methods import Method
from ..runtime import isolated_rng
from .classes import check_classes


def check_forget_indices(indices: Any, forget_dataset: Any) -> list[int] | None:
    """The rows as whole numbers, or None. Raises ValueError unless there is one for each sample of the forget set."""
    if indices is None:
        return None
    rows = np.asarray(indices.cpu() if isinstance(indices, torch.Tensor) else list(indices))
    count = 0 if forget_dataset is None else len(forget_dataset)
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or len(np.unique(rows)) != count:
        raise ValueError(
            f"forget_indices has {rows.size} entries ({rows.dtype}), forget_dataset {count} samples: give the "
            "row number of each sample in the training data once, or leave forget_indices out."
        )
    return rows.tolist()


def check_loaders(args: TrainingArguments, datasets: Mapping[str, Any]) -> None:
    """Images that lie on an accelerator are loaded by this process."""
    for name, data in datasets.items():
        if isinstance(data, ImagesInMemory) and data.device.type != "cpu" and args.dataloader_num_workers:
            raise ValueError(
                f"dataloader_num_workers={args.dataloader_num_workers}: the images of {name}_dataset lie on "
                f"{data.device}, which other processes cannot use. Pass 0: there is nothing for them to do."
            )


def check_splits(eval_dataset: Any) -> None:
    """The forget and the retain set are evaluated under these names in any case: nothing may take their place."""
    taken = sorted({"forget", "retain"} & set(eval_dataset)) if isinstance(eval_dataset, Mapping) else []
    if taken:
        raise ValueError(
            f"eval_dataset has the split(s) {taken}: forget_dataset and retain_dataset are evaluated under these "
            "names. Give yours other names, e.g. 'forget_validation'."
        )


def check_datasets(method: Method, streams: Mapping[str, Any]) -> None:
    """The streams that the method uses, and the forget set if it partitions the model, must be there."""
    required = {part for s in method.streams for part in (("retain", "forget") if s == "union" else (s,))}
    required |= {"forget"} if method.fraction is not None else set()
    for stream, dataset in streams.items():
        name = f"{stream}_dataset"
        if dataset is None:
            if stream in required:
                raise ValueError(f"{name}=None: {method!r} needs it. split_forget(train, indices) makes both sets.")
            continue
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise ValueError(
                f"{name} is a {type(dataset).__name__} without a length: samples are addressed by index. Pass a "
                "map-style data set, e.g. datasets.Dataset.from_generator(...) or load_dataset(..., streaming=False)."
            )
        if len(dataset) == 0:
            raise ValueError(f"{name} is empty: it needs at least one sample.")
    forget, retain = streams["forget"], streams["retain"]
    if forget is not None and forget is retain:
        raise ValueError("forget_dataset and retain_dataset are the same object: they must not share samples.")
    rows = {name: _rows_of(name, dataset) for name, dataset in streams.items() if dataset is not None}
    if len(rows) == 2 and rows["forget"][0] == rows["retain"][0]:
        both = set(rows["forget"][1]) & set(rows["retain"][1])
        if both:
            raise ValueError(
                f"forget_dataset and retain_dataset overlap in {len(both)} rows of the same data set, e.g. "
                f"{sorted(both)[:5]}: a sample is either forgotten or retained. Use split_forget(train, indices)."
            )


def _rows_of(stream: str, dataset: Any) -> tuple[Any, list[int]]:
    """(key of the data that a selection was made from, its rows there); data of other kinds is its own."""
    base, rows = dataset, None
    while isinstance(base, Subset):
        own = [int(i) for i in base.indices]
        rows = own if rows is None else [own[i] for i in rows]
        base = base.dataset
    if rows is not None:
        size = len(base)
        wrong = [i for i in rows if not -size <= i < size]
        rows = [i % size for i in rows]
        if wrong or len(set(rows)) < len(rows):
            problem = f"is out of range at {wrong[:5]}" if wrong else "names rows twice"
            raise ValueError(f"{stream}_dataset, a Subset of {size} rows, {problem}. Use split_forget(train, indices).")
        return id(base), rows
    if isinstance(dataset, ImagesInMemory):
        return dataset.pixels.data_ptr(), dataset.rows.tolist()
    if hasattr(dataset, "_indices") and hasattr(dataset, "data"):  # a datasets.Dataset, perhaps after select
        chunks = dataset.data.table.column(0).chunks if dataset.column_names else []
        if len(chunks) == 1 and chunks[0].buffers()[-1] is not None:
            indices = dataset._indices
            own = range(len(dataset)) if indices is None else indices.column(0).to_pylist()
            return chunks[0].buffers()[-1].address, [chunks[0].offset + i for i in own]
    return object(), []


def check_counted(stream: str, dataset: Any, collate: Callable[[list], Any], items: Callable[[Any], int]) -> None:
    """Raise ValueError where no label of a set counts: its loss would be the mean of nothing, and no weight would move
    because of it. (As a rule the first sample tells.)"""
    with isolated_rng():
        for row in range(len(dataset)):
            features = collate([dataset[row]])
            if not isinstance(features, Mapping) or items(features):
                return
    raise ValueError(
        f"{stream}_dataset: no label counts in any of its {len(dataset)} samples; all are -100, which is ignored (or a "
        "prompt is masked and what follows was cut off). Give the samples labels, or longer texts (max_length)."
    )


def warn_of_test(forget: Any, splits: Mapping[str, Any]) -> None:
    """Where a set that no model should have seen is the forget set itself."""
    for name, data in splits.items():
        if name not in ("forget", "retain") and _same(forget, data):
            warnings.warn(
                f"the {name} set has the samples of forget_dataset: attacks that tell forget from test samples, and "
                "test accuracies, then mean nothing. Pass samples that no model has seen.",
                stacklevel=2,
            )


def _same(forget: Any, data: Any) -> bool:
    if forget is data:
        return True
    if forget is None or not hasattr(data, "__len__") or len(data) != len(forget):
        return False
    (key, rows), (other, others) = _rows_of("forget", forget), _rows_of("eval", data)
    return key == other and set(rows) == set(others)


def check_samples(
    model: nn.Module,
    stream: str,
    dataset: Any,
    *,
    accepted: Sequence[str],
    label_names: Sequence[str],
    collate: Callable[[list], Any],
    keeps_columns: bool,
    needs_labels: bool,
    own_forward: bool,
) -> None:
    """One sample must reach the model: its columns are arguments of forward, labels included, classes in range.

    accepted: columns that are handed on. collate: of this stream. keeps_columns: unused columns are not removed.
    needs_labels: the loss is the model's own. own_forward: a `compute_loss` of the user's takes the columns.
    """
    name = f"{stream}_dataset"
    labels = [*label_names, "label", "label_ids"]
    with isolated_rng():
        item = dataset[0]
        usable = set(accepted) - set(labels)
        if isinstance(item, Mapping) and not keeps_columns and not set(item) & usable:
            raise ValueError(
                f"{name}: none of its columns {sorted(item)} is an argument of {type(model).__name__}.forward "
                f"({', '.join(accepted)}). Rename them, set a transform that makes them, or pass "
                "remove_unused_columns=False with a data_collator."
            )
        try:
            features = collate([item])
        except Exception as error:
            raise ValueError(
                f"{name}: its first sample, a {type(item).__name__}, does not go through the data collator "
                f"({type(error).__name__}: {error}). Samples are dicts of forward's arguments, or pass a data_collator "
                "that makes such a dict of them."
            ) from error
    kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    if isinstance(features, Mapping):
        unknown = sorted(set(features) - set(accepted))
        if unknown and not own_forward and inspect.Parameter.VAR_KEYWORD not in kinds:
            raise ValueError(
                f"{name}: {type(model).__name__}.forward does not take {unknown} (it takes {', '.join(accepted)}). "
                "Drop these columns, or leave remove_unused_columns=True."
            )
        if needs_labels and label_names and not set(features) & set(label_names):
            raise ValueError(
                f"{name}: no label column ({' or '.join(label_names)}) reaches the model, so it returns no "
                f"loss. Columns of a sample: {sorted(features)}. Add labels, or pass a {stream}_loss to the method."
            )
    check_classes(name, dataset, item, labels, model)
