"""Accuracy, the default `compute_metrics` of the trainer: of the class, or of the next token for a causal LM."""

import numpy as np
from torch import Tensor
from transformers import EvalPrediction


def predicted_classes(logits: Tensor | tuple, labels: Tensor) -> Tensor:
    """Reduce logits (..., classes) to predictions (...) batch by batch, so that no split's logits are kept.

    Float labels (regression, multi-label) have no class accuracy: the logits are passed through.
    """
    if isinstance(logits, tuple | list):
        logits = logits[0]
    if not isinstance(labels, Tensor) or labels.is_floating_point() or logits.ndim != labels.ndim + 1:
        return logits
    return logits.argmax(dim=-1)


def accuracy(prediction: EvalPrediction, shift: bool = False) -> dict[str, float]:
    """Share of correct predictions, in [0, 1], over labels other than -100. Higher is better.

    prediction: predicted classes and labels, same shape. shift: position t predicts label t + 1 (causal LM). Returns
    {} where accuracy is not defined (no labels, several kinds of labels, float labels, shapes that differ).
    """
    predictions, labels = prediction.predictions, prediction.label_ids
    if not isinstance(predictions, np.ndarray) or not isinstance(labels, np.ndarray):
        return {}
    if labels.dtype.kind not in "iub" or predictions.shape != labels.shape:
        return {}
    if shift:
        predictions, labels = predictions[..., :-1], labels[..., 1:]
    counted = labels != -100
    if not counted.any():
        return {}
    return {"accuracy": float((predictions[counted] == labels[counted]).mean())}
