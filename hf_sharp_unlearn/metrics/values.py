"""What is known of models without classes: their loss, sample by sample.

regression     (z - y)^2, mean over the model's outputs
several labels binary cross-entropy of sigmoid(z), mean over the labels, in nats

These are the terms of transformers' own losses. Accuracy, confidence, entropy and margin are of classes: where a model
has none they are absent, with this reason.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .scores import SCORES

REASONS = {
    "regression": "the model predicts values (regression), no classes: its loss alone is measured",
    "multi_label_classification": "the model gives a sample several labels, not one class: its loss alone is measured",
}


def values_of_batch(logits: Tensor, labels: Tensor, problem: str, features: Tensor) -> dict[str, Any]:
    """The fields of `Outputs` for a batch: logits (N, outputs), labels (N,) or (N, outputs).

    Raises ValueError for labels of another shape, and losses that are not finite.
    """
    if labels.numel() != logits.numel() or len(labels) != len(logits):
        raise ValueError(
            f"Labels of shape {tuple(labels.shape)} for logits of shape {tuple(logits.shape)} ({problem}): need a "
            "value for each of the model's outputs."
        )
    z, y = logits.float().reshape(len(logits), -1), labels.float().reshape(len(labels), -1)
    if problem == "regression":
        loss = (z - y).square().mean(1)
    else:
        loss = torch.nn.functional.binary_cross_entropy_with_logits(z, y, reduction="none").mean(1)
    if not bool(loss.isfinite().all()):
        raise ValueError(f"The loss of {int((~loss.isfinite()).sum())} of {len(loss)} samples is not finite.")
    n = len(loss)
    return {
        **{name: np.full(n, np.nan) for name in SCORES},
        "loss": loss.double().cpu().numpy(),
        "items": np.ones(n, np.int64),
        "predictions": np.full(n, -1, np.int64),
        "targets": np.full(n, -1, np.int64),
        "features": features.detach().cpu().numpy().astype(np.float32, copy=False),
        "logits": None,
        "without": REASONS[problem],
    }
