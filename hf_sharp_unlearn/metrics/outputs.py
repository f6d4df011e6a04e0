"""One forward pass over a split, and everything that the metrics need of it."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import default_data_collator

from ..data import classes_of, problem_of_model, unmoved_by_padding
from ..runtime import Inputs, derive_seed, evaluating, isolated_rng, progress_bar, seed_host
from ..step import aligned_labels, counted_items, raw_logits, shifts_labels
from .estimate import Estimate, mean, share
from .features import FeatureHook
from .scores import SCORES, sample_scores
from .values import values_of_batch


@dataclass(frozen=True)
class Outputs:
    """What a model says of N samples. A sample has one item (its class), or one a target token.

    loss, correct, confidence, max_confidence, entropy, modified_entropy, margin: (N,) float64, see `scores`; means over
        the items of a sample. items: (N,) number of items.
    predictions, targets: (items,) most likely and true class of each item, sample by sample.
    features: (N, D) float32, see `features`; D = 0 if not asked for.
    logits: (N, classes) float32; None for token models.
    without: why there are no classes (regression, several labels a sample): then the loss alone is known, and what
        speaks of classes is nan or -1.
    """

    loss: np.ndarray
    correct: np.ndarray
    confidence: np.ndarray
    max_confidence: np.ndarray
    entropy: np.ndarray
    modified_entropy: np.ndarray
    margin: np.ndarray
    items: np.ndarray
    predictions: np.ndarray
    targets: np.ndarray
    features: np.ndarray
    logits: np.ndarray | None = None
    without: str | None = None

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def labels(self) -> np.ndarray | None:
        """(N,) class of each sample; None for token models, whose samples have no class."""
        return None if self.logits is None else self.targets

    def take(self, rows: np.ndarray) -> "Outputs":
        """The outputs of some samples, in the order of `rows`."""
        rows = np.asarray(rows)
        first = np.concatenate([[0], np.cumsum(self.items)])
        spans = [np.arange(first[row], first[row + 1]) for row in rows]
        where = np.concatenate(spans) if spans else np.zeros(0, np.int64)
        kept = {name: getattr(self, name)[rows] for name in (*SCORES, "items", "features")}
        logits = None if self.logits is None else self.logits[rows]
        kept |= {"predictions": self.predictions[where], "targets": self.targets[where]}
        return Outputs(**kept, logits=logits, without=self.without)

    def reordered(self, order: Sequence[int]) -> "Outputs":
        """The outputs of a model that numbers its classes otherwise, in another model's numbers: class i of the result
        is class order[i] of these (`class_order` of the room data)."""
        place = np.empty(len(order), np.int64)
        place[np.asarray(order)] = np.arange(len(order))
        turned = {"predictions": place[self.predictions], "targets": place[self.targets]}
        logits = self.logits if self.logits is None or not self.logits.shape[1] else self.logits[:, order]
        return dataclasses.replace(self, **turned, logits=logits)

    def slim(self) -> "Outputs":
        """The same without what grows with classes and features: for many models at once."""
        logits = None if self.logits is None else self.logits[:, :0]
        return dataclasses.replace(self, features=self.features[:, :0], logits=logits)

    @classmethod
    def from_logits(cls, logits: Any, labels: Any, features: Any = None) -> "Outputs":
        """Outputs of a classifier from arrays: logits (N, classes), labels (N,), features (N, D).

        Raises ValueError as `sample_scores` does.
        """
        logits, labels = _tensor(logits), _tensor(labels)
        features = torch.zeros(len(labels), 0) if features is None else _tensor(features)
        if len(features) != len(labels):
            raise ValueError(f"features has {len(features)} rows, labels has {len(labels)}.")
        items = torch.ones(len(labels), dtype=torch.bool)
        return cls._joined([_of_batch(logits, labels, items, features)])

    @classmethod
    def _joined(cls, parts: list[dict[str, Any]]) -> "Outputs":
        arrays = [field.name for field in dataclasses.fields(cls) if field.name != "without"]
        whole = {
            name: None if parts[0][name] is None else np.concatenate([part[name] for part in parts]) for name in arrays
        }
        return cls(**whole, without=parts[0].get("without"))


def collect_outputs(
    model: nn.Module,
    samples: Any,
    *,
    batch_size: int = 128,
    collator: Callable | None = None,
    label_names: Sequence[str] = ("labels",),
    feature_layer: str | None = None,
    features: bool = True,
    name: str = "split",
    progress: bool = True,
) -> Outputs:
    """One forward pass in eval mode, without gradients, on the device where the model is.

    samples: map-style data set, or a DataLoader of batches, each with `label_names`. Labels of -100 are not counted,
        and samples without a counted label are left out. Columns that the model's forward does not know are left out,
        as in Trainer. collator: transformers' default if None.
    features: False collects none. feature_layer: module whose output is the feature; None finds the penultimate one
        (see `features`).
    name: of the split, in the progress bar and in errors.

    Models of values (regression, several labels a sample) have a loss and features only: see `Outputs.without`. Padding
    on the left of a decoder's texts changes nothing.

    The model's modes and buffers, and the host's random generators, are left as they were. Raises ValueError for an
    empty split, labels that do not fit, logits that are not finite, and a feature layer that cannot be found.
    """
    loader = _loader(samples, batch_size, collator or default_data_collator, name)
    prepared, shift = Inputs(model, label_names), shifts_labels(model)
    checked = functools.partial(_forward, model, label_names=label_names, shift=shift, classes=classes_of(model))
    hooked = FeatureHook(model, feature_layer) if features else contextlib.nullcontext()
    parts = []
    with evaluating(model), isolated_rng(), torch.no_grad(), hooked as hook:
        seed_host(derive_seed("outputs"))  # augmentation, if there is any, is the same for every model
        for batch in progress_bar(loader, desc=name, disable=not progress, leave=False):
            try:
                parts.append(checked(unmoved_by_padding(model, prepared(batch), label_names), hook=hook))
            except ValueError as error:
                raise ValueError(f"The {name} set: {error}") from None
    parts = [part for part in parts if len(part["loss"])]
    if not parts:
        raise ValueError(f"The {name} set has no sample with a label that counts: nothing can be measured on it.")
    return Outputs._joined(parts)


def _loader(samples: Any, batch_size: int, collator: Callable, name: str) -> DataLoader:
    if isinstance(samples, DataLoader):
        return samples
    if not hasattr(samples, "__getitem__") or not hasattr(samples, "__len__"):
        raise ValueError(
            f"The {name} set is a {type(samples).__name__}: pass a map-style data set, or a DataLoader that makes "
            "batches."
        )
    if len(samples) == 0:
        raise ValueError(f"The {name} set is empty.")
    return DataLoader(samples, batch_size=batch_size, collate_fn=collator)


def _tensor(values: Any) -> Tensor:
    return values.detach() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))


def _forward(
    model: nn.Module,
    batch: dict,
    *,
    label_names: Sequence[str],
    shift: bool,
    classes: int | None,
    hook: FeatureHook | None,
) -> dict[str, Any]:
    labels = aligned_labels(batch, label_names, shift)
    if labels is None:
        raise ValueError(
            f"no labels under {tuple(label_names)} in a batch of {sorted(batch)}: name them (label_names)."
        )
    problem = problem_of_model(model)
    if classes is not None and problem is None and not labels.is_floating_point():
        wrong = labels[((labels < 0) | (labels >= classes)) & (labels != -100)]
        if len(wrong):
            raise ValueError(
                f"labels outside the model's {classes} classes, e.g. {wrong[:5].tolist()}: labels are 0 to "
                f"{classes - 1}; -100 is ignored."
            )
    found = raw_logits(model(**dict(batch)))
    if problem := problem_of_model(model):  # transformers may have told it from the labels
        items = torch.ones(len(found), dtype=torch.bool)
        features = torch.zeros(len(found), 0) if hook is None else hook.take(found, items)
        return values_of_batch(found, labels, problem, features)
    items = counted_items(batch, found, label_names, shift)
    features = torch.zeros(len(found), 0) if hook is None else hook.take(found, items)
    return _of_batch(found, labels, items, features)


def _of_batch(logits: Tensor, labels: Tensor, items: Tensor, features: Tensor) -> dict[str, Any]:
    if logits.ndim == 2:
        kept = items
        pieces = [(logits[kept], labels[kept])] if bool(kept.any()) else []
    else:  # sample by sample: logits of a vocabulary are too large to copy whole
        kept = items.reshape(len(items), -1).any(1)
        pieces = [(logits[i][items[i]], labels[i][items[i]]) for i in kept.nonzero()[:, 0].tolist()]
    found = [sample_scores(*piece) for piece in pieces]
    shrink = (lambda values: values) if logits.ndim == 2 else (lambda values: values.mean(0, keepdim=True))
    empty = torch.zeros(0)
    return {
        **{name: _array(_joined([shrink(scores[name]) for scores in found], empty), np.float64) for name in SCORES},
        "items": _array(items.reshape(len(items), -1).sum(1)[kept], np.int64),
        "predictions": _array(_joined([piece[0].argmax(-1) for piece in pieces], empty), np.int64),
        "targets": _array(_joined([piece[1] for piece in pieces], empty), np.int64),
        "features": _array(features[kept.to(features.device)], np.float32),
        "logits": _array(logits[kept].float(), np.float32) if logits.ndim == 2 else None,
    }


def _joined(parts: list[Tensor], empty: Tensor) -> Tensor:
    return torch.cat(parts) if parts else empty


def _array(tensor: Tensor, dtype: type) -> np.ndarray:
    return tensor.detach().cpu().numpy().astype(dtype, copy=False)


def accuracy_of(outputs: Outputs) -> Estimate:
    """Share of items that are predicted right, in [0, 1]; for token models with an interval over samples, because the
    tokens of one sample are not independent."""
    if outputs.logits is not None:
        return share(outputs.correct)
    value = float(np.average(outputs.correct, weights=outputs.items))
    if len(outputs) < 2:
        return Estimate(value, len(outputs), method="share of tokens")
    # A ratio of sums over samples, linearised: Cochran 1977, 6.3.
    residuals = outputs.items * (outputs.correct - value) / outputs.items.mean()
    around = mean(residuals)
    half = around.high - around.value
    low, high = max(value - half, 0.0), min(value + half, 1.0)
    return Estimate(value, len(outputs), low, high, "share of tokens, t interval over samples")
