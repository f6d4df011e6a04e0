"""Losses and counts on the logits of a model."""

import inspect
from collections.abc import Mapping, Sequence
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

from ..data import targets_of


def logits_of(outputs: Any) -> Tensor:
    """The logits of a model's outputs, at least in single precision: a mapping or object with `logits`, or a tuple
    (loss, logits, ...).

    Raises ValueError for outputs without them.
    """
    logits = raw_logits(outputs)
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def raw_logits(outputs: Any) -> Tensor:
    """The same in the model's own precision. Raises ValueError for outputs without logits."""
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if logits is None and isinstance(outputs, tuple | list) and len(outputs) > 1:
        logits = outputs[1]
    if not isinstance(logits, Tensor):
        raise ValueError(f"The model returns {type(outputs).__name__} without `logits`: this method compares them.")
    return logits


def shifts_labels(model: nn.Module) -> bool:
    """True where position t of the logits predicts label t + 1, so that the model's own loss shifts the labels.

    Trainer goes by the name of the class, which is wrong for GPT-2 (named otherwise, it shifts) and for the decoders of
    BART and its kin (named `ForCausalLM`, they do not). What decides is the forward of the class: whether it hands the
    labels to transformers' `loss_function`, and which one that is; or shifts them itself; or compares as they are.
    """
    model = getattr(model, "_orig_mod", model)  # a compiled model
    model = model.get_base_model() if hasattr(model, "get_base_model") else model  # PEFT
    for owner in type(model).__mro__:
        forward = inspect.unwrap(vars(owner).get("forward", _no_forward))
        code = getattr(forward, "__code__", _no_forward.__code__)
        if "loss_function" in code.co_names:
            return _shifting(model) and not (_is_encoder_decoder(model) and _hands_over_shifted_labels(code))
        if _SHIFTED & {*code.co_names, *code.co_varnames, *code.co_cellvars}:
            return True
        if _LOSSES & {*code.co_names} or owner is nn.Module:
            return False
        if forward is not _no_forward and "super" not in code.co_names:  # the loss is made by a part of the model
            inner = [part for part in model.children() if "labels" in _arguments(part)]
            return len(inner) == 1 and shifts_labels(inner[0])
    return False


# How code that computes its own loss calls the shifted tensors, and the loss.
_SHIFTED = {"shift_labels", "shift_logits", "shifted_labels", "shifted_logits"}
_LOSSES = {"CrossEntropyLoss", "cross_entropy", "NLLLoss", "nll_loss", "BCEWithLogitsLoss", "MSELoss"}


def _no_forward(self) -> None: ...


def _arguments(module: nn.Module) -> Mapping[str, Any]:
    return inspect.signature(module.forward).parameters


def _shifting(model: nn.Module) -> bool:
    """Whether the model's `loss_function` shifts; transformers takes the one of causal models where it knows no other.

    One that a user has set, and that is none of transformers', is taken to do what it stands in for.
    """
    own = getattr(model, "_loss_function", None)  # what the setter of `loss_function` keeps
    if own in LOSS_MAPPING.values():
        return own is ForCausalLMLoss
    kind = LOSS_MAPPING.get(getattr(model, "loss_type", None), ForCausalLMLoss)
    return kind is ForCausalLMLoss


def _is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _hands_over_shifted_labels(code: CodeType) -> bool:
    """`loss_function(..., shift_labels=labels)`: an encoder-decoder's labels are in place, which it says this way."""
    keywords = {word for const in code.co_consts if isinstance(const, tuple) for word in const}
    return "shift_labels" in keywords


def aligned_labels(features: Mapping[str, Any], label_names: Sequence[str], shift: bool) -> Tensor | None:
    """The label that each position of the logits predicts; -100 at the last position of a causal LM. None without."""
    labels, shifted = targets_of(features, label_names, shift)
    return torch.nn.functional.pad(labels, (0, 1), value=-100) if shifted else labels


def counted_items(features: Mapping[str, Any], logits: Tensor, label_names: Sequence[str], shift: bool) -> Tensor:
    """What the mean of the model's loss runs over: a boolean tensor of the shape of the logits without their last
    dimension, True where a label is counted (not -100). shift: position t predicts label t + 1 (causal LM).

    Raises ValueError where labels and logits (batch, ..., classes) do not fit.
    """
    labels = aligned_labels(features, label_names, shift)
    if labels is None:
        return torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device)
    if labels.is_floating_point() or labels.shape != logits.shape[:-1]:
        raise ValueError(
            f"Labels of shape {tuple(labels.shape)} ({labels.dtype}) for logits of shape {tuple(logits.shape)}: this "
            "method needs integer class labels of shape (batch,) or (batch, tokens) and logits with classes last."
        )
    return labels != -100


def distillation(student: Tensor, teacher: Tensor, items: Tensor, temperature: float) -> Tensor:
    """T^2 times the mean over the items of KL(softmax(teacher / T) || softmax(student / T)); a scalar >= 0.

    student, teacher: logits (..., classes); items: boolean (...). T^2 keeps the gradient's size when T changes (Hinton
    et al., arXiv 1503.02531). A mean over no items is nan, as the model's own loss is.
    """
    target = (teacher / temperature).log_softmax(-1)
    guess = (student / temperature).log_softmax(-1)
    divergence = (target.exp() * (target - guess)).sum(-1)
    return temperature**2 * torch.where(items, divergence, 0).sum() / items.sum()
