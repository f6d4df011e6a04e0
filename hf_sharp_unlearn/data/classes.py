"""The classes of a model: how many, what they are called, and how two models' numbers of them go together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.models.auto import modeling_auto


def _names_in(*mappings: Mapping[str, Any]) -> set[str]:
    return {
        name
        for mapping in mappings
        for names in mapping.values()
        for name in ([names] if isinstance(names, str) else names)
    }


_ONE_A_SAMPLE = _names_in(
    modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES,
)
_CLASSIFIERS = _ONE_A_SAMPLE | _names_in(modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES)
_SINGLE = (None, "single_label_classification")


def judges_samples(kind: type) -> bool:
    """True of transformers' classes with one judgement a sample: classifiers of images, sequences, audio, video."""
    return any(base.__name__ in _ONE_A_SAMPLE for base in kind.__mro__)


def problem_of(config: Any, kind: type) -> str | None:
    """ "regression" or "multi_label_classification" for models without one class a sample; None for all others."""
    if not judges_samples(kind):
        return None
    problem = getattr(config, "problem_type", None)
    if problem is None and config.num_labels == 1:
        return "regression"
    return None if problem in _SINGLE else problem


def problem_of_model(model: Any) -> str | None:
    """The same of a model in memory."""
    base = inner_of(model)
    return problem_of(getattr(base, "config", None), type(base))


def classes_of(model: Any) -> int | None:
    """Number of classes that integer labels index: of a classifier's head, or the vocabulary of a language model."""
    base = inner_of(model)
    if _classifies(base):
        config = base.config
        single = getattr(config, "problem_type", None) in _SINGLE
        return config.num_labels if single and config.num_labels > 1 else None
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    return getattr(head, "out_features", None)


def class_names(config: Any) -> list[str] | None:
    """What a config calls its classes, by number; None where it says nothing (LABEL_0, LABEL_1, ...)."""
    names = {int(number): str(name) for number, name in (getattr(config, "id2label", None) or {}).items()}
    if not names or all(name == f"LABEL_{number}" for number, name in names.items()):
        return None
    return [names[number] for number in sorted(names)]


def class_order(model: Any, other: Any, name: str) -> list[int] | None:
    """The other model's number of each class of `model`; None where both number alike, or one of them has no names.

    Raises ValueError, with both lists, for classes that do not fit. name: of the other model, for the error.
    """
    pair = [inner_of(m) for m in (model, other)]
    if not all(map(_classifies, pair)):
        return None
    return order_of(pair[0].config, pair[1].config, name)


def order_of(config: Any, other: Any, name: str) -> list[int] | None:
    """`class_order` of the configs of two classifiers."""
    ours, theirs = class_names(config), class_names(other)
    counts = [c.num_labels for c in (config, other)]
    if counts[0] != counts[1] or ours and theirs and sorted(ours) != sorted(theirs):
        shown = [
            f"{n} classes" + (f" {names[:10]}" if names else "")
            for n, names in zip(counts, (ours, theirs), strict=True)
        ]
        raise ValueError(
            f"{name} has {shown[1]}, the model has {shown[0]}: their answers cannot be compared. Give a model of the "
            "same classes, or correct id2label in its config."
        )
    if not ours or not theirs or ours == theirs or len(set(ours)) < len(ours):
        return None
    return [theirs.index(label) for label in ours]


def inner_of(model: Any) -> Any:
    """The model under a compiler and an adapter."""
    model = getattr(model, "_orig_mod", model)  # a compiled model
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT


def _classifies(model: Any) -> bool:
    known = any(base.__name__ in _CLASSIFIERS for base in type(model).__mro__)
    return known and hasattr(getattr(model, "config", None), "num_labels")


@dataclass(frozen=True)
class Renumbered:
    """A collator whose labels are those of a model that numbers its classes otherwise. order: see `class_order`."""

    collate: Callable
    label_names: Sequence[str]
    order: Sequence[int]

    def __call__(self, rows: list) -> Any:
        batch = dict(self.collate(rows))
        for name in (*self.label_names, "label", "label_ids"):
            labels = batch.get(name)
            if isinstance(labels, Tensor) and not labels.is_floating_point():
                known = (labels >= 0) & (labels < len(self.order))
                turned = torch.as_tensor(self.order, device=labels.device)[labels.clamp(0, len(self.order) - 1)]
                batch[name] = torch.where(known, turned, labels)
        return batch
