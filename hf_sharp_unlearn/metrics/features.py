"""Penultimate features: what a model hands to the layer that makes its logits.

The layer is found, not named, so it is the same for timm wrappers, HF ResNet, ViT, Swin, ConvNeXt and causal LMs: the
last linear or 1 x 1 convolutional module that a forward pass calls and that has as many outputs as there are logits.
Its *input* is the feature: the pooled map of a ResNet, the [CLS] token of a ViT, the last hidden state of an LM. No
extra forward pass is made.

    (batch, D)           as it is; (batch, D, 1, 1) flattened
    (batch, D, H, W)     mean over the positions
    (batch, T, D)        mean over the sample's counted tokens; where the logits are those of one token (sequence
                         classification with a decoder), that token's

`feature_layer` names another module instead (`dict(model.named_modules())`); then its *output* is the feature.
"""

from typing import Any

import torch
from torch import Tensor, nn


class FeatureHook:
    """Records features while its block is open; `take` returns those of the last forward pass.

    Raises ValueError for a `feature_layer` that the model does not have.
    """

    def __init__(self, model: nn.Module, feature_layer: str | None = None):
        self.layer = feature_layer
        self._named = feature_layer is not None
        self._model = model
        self._handles: list[Any] = []
        self._calls: dict[int, tuple[str, Tensor, Tensor]] = {}  # outputs -> name, input, output of the last such call
        modules = dict(model.named_modules())
        if self._named and feature_layer not in modules:
            close = [name for name in modules if name.count(".") <= 1 and name][:20]
            raise ValueError(f"feature_layer={feature_layer!r} is no module of the model; it has e.g. {close}.")

    def __enter__(self) -> "FeatureHook":
        self._watch()
        return self

    def __exit__(self, *exc: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._calls = [], {}

    def _watch(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = [
            module.register_forward_hook(self._record(name))
            for name, module in self._model.named_modules()
            if (name == self.layer if self.layer is not None else _may_make_logits(module))
        ]

    def _record(self, name: str):
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            output = _tensor(output)
            if self._named:
                self._calls = {0: (name, output, output)}
            elif inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                # Only the last call of each size is kept: the memory of a few layers, not of all.
                size = output.shape[1 if isinstance(module, nn.Conv2d) else -1]
                self._calls[size] = (name, inputs[0].detach(), output)

        return hook

    def take(self, logits: Tensor, items: Tensor) -> Tensor:
        """Features (batch, D) float32 of the forward pass that made `logits`; items: boolean, the counted positions.

        Raises ValueError where no layer can be found, or the named one was not called.
        """
        calls, self._calls = self._calls, {}
        call = calls.get(0 if self._named else logits.shape[-1])
        if call is None and self._named:
            raise ValueError(f"feature_layer={self.layer!r} was not called in the forward pass: name another one.")
        if call is None:
            raise ValueError(
                f"no linear layer with {logits.shape[-1]} outputs was called: name the module whose output is the "
                "feature (feature_layer=...)."
            )
        name, found, output = call
        if self.layer is None:
            self.layer = name
            self._watch()
        if not self._named and found.ndim == 3 and logits.ndim == 2 and output.ndim == 3:
            chosen = (output.float() == logits[:, None].to(output.device)).all(-1)
            if bool(chosen.any(1).all()):
                return found[torch.arange(len(found), device=found.device), chosen.int().argmax(1)].float()
        return _pooled(found, items)


def _may_make_logits(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1)
    # Layers that replace nn.Linear (quantised, LoRA, parametrised) keep its attribute.
    return isinstance(module, nn.Linear) or isinstance(getattr(module, "out_features", None), int)


def _tensor(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.detach()
    if isinstance(output, tuple | list) and output:
        return _tensor(output[0])
    return _tensor(next(iter(output.values()))) if hasattr(output, "values") and len(output) else output


def _pooled(found: Any, items: Tensor) -> Tensor:
    if not isinstance(found, Tensor) or found.ndim < 2:
        raise ValueError(
            f"The features are {type(found).__name__}, need a tensor (batch, ...) of two or more dimensions."
        )
    found = found.float()
    if found.ndim == 2:
        return found
    if found.ndim == 3:
        if items.shape == found.shape[:2]:
            weights = items.to(found.device, found.dtype)
            return (found * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp(min=1)
        return found.mean(1)
    return found.flatten(2).mean(2)
