"""Accuracy, the default `compute_metrics` of the trainer: of the class, or of the next token for a causal LM."""

import numpy as np
import torch
from torch import Tensor


def predicted_classes(logits: Tensor | tuple, labels: Tensor) -> Tensor:
    """Reduce logits (..., classes) to predictions (...) batch by batch, so that no split's logits are kept.

    Float labels (regression, multi-label) have no class accuracy: the logits are passed through.
    """
    if isinstance(logits, tuple | list):
        logits = logits[0]
    if not isinstance(labels, Tensor) or labels.is_floating_point() or logits.ndim != labels.ndim + 1:
        return logits
    return logits.argmax(dim=-1)


def accuracy(predictions: np.ndarray, labels: np.ndarray, shift: bool = False) -> dict[str, float]:
    """Share of correct predictions, in [0, 1], over labels other than -100. Higher is better.

    shift: position t predicts label t + 1 (causal LM). Returns {} where accuracy is not defined (float labels,
    shapes that differ, or no label left).
    """
    predictions, labels = (torch.as_tensor(np.asarray(value)) for value in (predictions, labels))
    if labels.is_floating_point() or predictions.shape != labels.shape:
        return {}
    if shift:
        predictions, labels = predictions[..., :-1], labels[..., 1:]
    counted = labels != -100
    if not counted.any():
        return {}
    return {"accuracy": (predictions[counted] == labels[counted]).double().mean().item()}
