"""One forward pass over a split, and everything that the metrics need of it."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import default_data_collator
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

from ..buffers import evaluating
from ..data import targets_of
from ..losses import counted_items, logits_of
from ..rng import derive_seed, isolated_rng, seed_host
from .features import FeatureHook
from .scores import SCORES, sample_scores


@dataclass(frozen=True)
class Outputs:
    """What a model says of N samples. A sample has one item (its class), or one a target token.

    loss, correct, confidence, max_confidence, entropy, modified_entropy, margin: (N,) float64, see `scores`; means over
        the items of a sample. items: (N,) number of items.
    predictions, targets: (items,) most likely and true class of each item, sample by sample.
    features: (N, D) float32, see `features`; D = 0 if not asked for.
    logits: (N, classes) float32; None for token models.
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
        return Outputs(**kept, predictions=self.predictions[where], targets=self.targets[where], logits=logits)

    @classmethod
    def from_logits(cls, logits: Any, labels: Any, features: Any = None) -> "Outputs":
        """Outputs of a classifier from arrays: logits (N, classes), labels (N,), features (N, D).

        Raises ValueError as `sample_scores` does.
        """
        logits, labels = torch.as_tensor(np.asarray(logits)), torch.as_tensor(np.asarray(labels))
        features = np.zeros((len(labels), 0)) if features is None else np.asarray(features)
        if len(features) != len(labels):
            raise ValueError(f"features has {len(features)} rows, labels has {len(labels)}.")
        items = torch.ones(len(labels), dtype=torch.bool)
        return cls._joined([_of_batch(logits, labels, items, torch.as_tensor(features))])

    @classmethod
    def _joined(cls, parts: list[dict[str, Any]]) -> "Outputs":
        whole = {
            name: None if parts[0][name] is None else np.concatenate([part[name] for part in parts])
            for name in (field.name for field in dataclasses.fields(cls))
        }
        return cls(**whole)


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

    samples: map-style data set, or an iterable of batches (a DataLoader), each with `label_names`. Labels of -100 are
        not counted, and samples without a counted label are left out. collator: transformers' default if None.
    feature_layer: module whose output is the feature; None finds the penultimate one (see `features`).
    name: of the split, in the progress bar and in errors.

    The model's modes and buffers, and the host's random generators, are left as they were. Raises ValueError for an
    empty split, labels that do not fit, logits that are not finite, and a feature layer that cannot be found.
    """
    loader = _loader(samples, batch_size, collator or default_data_collator, name)
    device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
    shift = shifts_labels(model)
    parts = []
    with evaluating(model), isolated_rng(), torch.no_grad(), FeatureHook(model, feature_layer) as hook:
        seed_host(derive_seed("outputs"))  # augmentation, if there is any, is the same for every model
        for batch in tqdm(loader, desc=name, disable=not progress, leave=False):
            batch = {key: _moved(value, device) for key, value in batch.items()}
            try:
                parts.append(_forward(model, batch, label_names, shift, hook if features else None))
            except ValueError as error:
                raise ValueError(f"The {name} set: {error}") from None
    parts = [part for part in parts if len(part["loss"])]
    if not parts:
        raise ValueError(f"The {name} set has no sample with a label that counts: nothing can be measured on it.")
    return Outputs._joined(parts)


def shifts_labels(model: nn.Module) -> bool:
    """True where position t of the logits predicts label t + 1: causal language models (as Trainer decides it)."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    shifting = LOSS_MAPPING.get(getattr(inner, "loss_type", None)) is ForCausalLMLoss
    return shifting and not getattr(getattr(inner, "config", None), "is_encoder_decoder", False)


def _loader(samples: Any, batch_size: int, collator: Callable, name: str) -> Iterable:
    if hasattr(samples, "__getitem__") and hasattr(samples, "__len__"):
        if len(samples) == 0:
            raise ValueError(f"The {name} set is empty.")
        return DataLoader(samples, batch_size=batch_size, collate_fn=collator)
    if not hasattr(samples, "__iter__"):
        raise ValueError(f"The {name} set is a {type(samples).__name__}: pass a map-style data set or a DataLoader.")
    return samples


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _forward(
    model: nn.Module, batch: dict, label_names: Sequence[str], shift: bool, hook: FeatureHook | None
) -> dict[str, Any]:
    found = logits_of(model(**dict(batch)))
    labels, shifted = targets_of(batch, label_names, shift)
    if labels is None:
        raise ValueError(
            f"no labels under {tuple(label_names)} in a batch of {sorted(batch)}: name them (label_names)."
        )
    items = counted_items(batch, found, label_names, shift)
    features = found.new_zeros((len(found), 0)) if hook is None else hook.take(found, items)
    if shifted:
        labels = nn.functional.pad(labels, (0, 1), value=-100)
    return _of_batch(found, labels, items, features)


def _of_batch(logits: Tensor, labels: Tensor, items: Tensor, features: Tensor) -> dict[str, Any]:
    counts = items.reshape(len(items), -1).sum(1)
    kept = counts > 0
    owner = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    chosen, targets = logits[items], labels[items]
    scores = sample_scores(chosen, targets)
    means = {
        name: torch.zeros(len(counts), device=chosen.device).index_add_(0, owner, values) / counts
        for name, values in scores.items()
    }
    return {
        **{name: _array(values[kept], np.float64) for name, values in means.items()},
        "items": _array(counts[kept], np.int64),
        "predictions": _array(chosen.argmax(-1), np.int64),
        "targets": _array(targets, np.int64),
        "features": _array(features[kept.to(features.device)], np.float32),
        "logits": _array(logits[kept], np.float32) if logits.ndim == 2 else None,
    }


def _array(tensor: Tensor, dtype: type) -> np.ndarray:
    return tensor.detach().cpu().numpy().astype(dtype, copy=False)
