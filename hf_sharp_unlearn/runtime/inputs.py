"""What a batch becomes before a model gets it, outside of a Trainer."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Inputs:
    """Moves batches to the model's device, and leaves out columns that its forward does not know, as Trainer does."""

    def __init__(self, model: nn.Module, label_names: Sequence[str] = ("labels",)):
        self.device = next((weight.device for weight in model.parameters()), torch.device("cpu"))
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        known = [p for p in inspect.signature(inner.forward).parameters.values() if p.kind is not p.VAR_KEYWORD]
        self._names: set[str] | None = {p.name for p in known} | {"label", "label_ids", "shift_labels", *label_names}
        if not known or any(p.kind is p.VAR_POSITIONAL for p in known):
            self._names = None  # it takes whatever comes

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: value.to(self.device) if isinstance(value, Tensor) else value
            for key, value in batch.items()
            if self._names is None or key in self._names
        }
