"""The data of a run: the forget set and the retain set, their union, what is evaluated, and how items are counted."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Subset

from ..runtime import derive_seed

COUNTS = "counts"  # key of a micro-batch: stream -> (items, samples)


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
    forgotten = select_rows(dataset, forget)
    forgotten.unlearning_rows = forget.tolist()  # lost where the set is mapped: another set then, as far as we know
    return forgotten, select_rows(dataset, retain)


def rows_of(forget_dataset: Any) -> list[int] | None:
    """The rows of the training data that `split_forget` made this forget set of; None if something else did."""
    return getattr(forget_dataset, "unlearning_rows", None)


def select_rows(dataset: Any, rows: np.ndarray) -> Any:
    """Some rows of a map-style data set: a `datasets.Dataset` or `ImagesInMemory` gives one of its kind, anything else
    a `torch.utils.data.Subset`."""
    if hasattr(dataset, "select") and (hasattr(dataset, "column_names") or hasattr(dataset, "fetch")):
        return dataset.select(rows)
    return Subset(dataset, np.asarray(rows).tolist())


class Union(Dataset):
    """The retain set followed by the forget set: the stream "union" of methods that train on both as one set."""

    def __init__(self, retain: Any, forget: Any):
        self.retain, self.forget = retain, forget

    def __len__(self) -> int:
        return len(self.retain) + len(self.forget)

    def __getitem__(self, index: int) -> Any:
        return self.forget[index - len(self.retain)] if self.is_forget(index) else self.retain[index]

    def is_forget(self, index: int) -> bool:
        return index >= len(self.retain)


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


def targets_of(features: Mapping[str, Any], label_names: Sequence[str], shift: bool) -> tuple[Any, bool]:
    """(what the logits are to predict, or None; True if the first position was cut off, because t predicts t + 1)."""
    if features.get("shift_labels") is not None:
        return features["shift_labels"], False
    labels = next((features[name] for name in label_names if features.get(name) is not None), None)
    if labels is not None and shift and labels.ndim > 1:
        return labels[..., 1:], True
    return labels, False


def count_items(features: Mapping[str, Any], label_names: Sequence[str], shift: bool, ignored_pixel: int = -100) -> int:
    """Number of terms in the mean of the model's loss: samples, or unmasked target tokens.

    Labels of -100 are not counted. shift: position t predicts label t + 1 (causal LM), so the first label of a
    sequence is no target. Maps of labels (batch, height, width) do not count `ignored_pixel`. Float labels (regression,
    multi-label) count as one item per sample.
    """
    labels, _ = targets_of(features, label_names, shift)
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
    if own is not None:
        sets |= own if isinstance(own, Mapping) else {"test": own}
    return {name: _without_augmentation(dataset) for name, dataset in sets.items()}


def _without_augmentation(dataset: Any) -> Any:
    """Images as they are, where the data set can tell: see `images`."""
    if hasattr(dataset, "for_evaluation"):
        return dataset.for_evaluation()
    transform = transform_of(dataset)
    return dataset.with_transform(transform.for_evaluation()) if hasattr(transform, "for_evaluation") else dataset


def transform_of(dataset: Any) -> Any:
    """What `with_transform` has set on a `datasets.Dataset`; None for none, and for anything else."""
    return ((getattr(dataset, "format", None) or {}).get("format_kwargs") or {}).get("transform")
