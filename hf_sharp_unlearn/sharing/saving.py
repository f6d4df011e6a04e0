"""Saved models that load elsewhere: with plain `from_pretrained`, and those of timm with timm too."""

import json
import os
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..runtime import write_text

TIMM_PREFIX = "timm_model."
# What timm needs of a model's configuration, and transformers of an image processor's.
TIMM_FIELDS = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode", "pool_size", "first_conv",
               "classifier", "fixed_input_size")  # fmt: skip


def state_to_save(model: Any, state_dict: Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
    """The state to save; None for what `save_pretrained` makes of the model itself.

    Of a timm model, weights under timm's names, which both libraries read. Elsewhere, tensors that share memory or do
    not fill theirs (tied weights, views, channels_last) as copies of their own, because safetensors takes no others:
    each name is in the file, and plain `load_state_dict` reads it. Models of transformers know their tied weights, and
    these are saved once; ties that they do not know of are broken up here.
    """
    if not _is_timm(model):
        if hasattr(model, "peft_config"):
            return state_dict
        state = model.state_dict() if state_dict is None else state_dict
        known = getattr(model, "all_tied_weights_keys", None) or {}
        own = _separate(state, {*known, *(known.values() if isinstance(known, Mapping) else ())})
        return state_dict if own is None and isinstance(model, PreTrainedModel) else own or state
    return {name.removeprefix(TIMM_PREFIX): value for name, value in (state_dict or model.state_dict()).items()}


def complete_saved(model: Any, folder: str) -> bool:
    """Add to a saved model what others need of it, and take away what they must not see. True if a card was removed:
    peft's own names the base model, be it a folder of this machine."""
    if _is_timm(model):
        _complete_timm_config(model, os.path.join(folder, "config.json"))
    page = os.path.join(folder, "README.md")
    if not hasattr(model, "peft_config") or not os.path.exists(page):
        return False
    os.remove(page)
    return True


def _separate(state: Mapping[str, Any], tied: Collection[str]) -> dict[str, Any] | None:
    """The same tensors, none in another's memory and all contiguous; None if they are so. tied: names to leave."""
    own, owners = dict(state), {}
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.layout is not torch.strided or not value.numel() or name in tied:
            continue
        place = value.device, value.untyped_storage().data_ptr()
        if place[1] and place in owners:
            own[name] = value.detach().clone(memory_format=torch.contiguous_format)
        elif not value.is_contiguous() or value.numel() * value.element_size() < value.untyped_storage().nbytes():
            own[name] = value.detach().clone(memory_format=torch.contiguous_format)
        owners.setdefault(place, name)
    return own if any(own[name] is not state[name] for name in own) else None


def check_saveable(model: Any) -> None:
    """Before any work: raise ValueError for a model whose state cannot be written, or not be read again."""
    for name, module in model.named_modules():
        if name and hasattr(module, "_orig_mod"):
            raise ValueError(
                f"model: its part {name} was wrapped by torch.compile, so its weights would be saved under other names "
                f"({name}._orig_mod...) than a loader asks for. Compile it in place, model.{name}.compile(), or "
                "pass torch_compile=True."
            )
    if isinstance(model, PreTrainedModel) or hasattr(model, "peft_config"):
        return
    for name, value in model.state_dict().items():
        what = type(value).__name__ if not isinstance(value, Tensor) else str(value.layout)
        if what != "torch.strided":
            raise ValueError(
                f"model: {name} in its state_dict() is a {what}, which a checkpoint (safetensors) cannot hold. Keep it "
                "out of the state (get_extra_state, persistent=False), or make it a dense tensor."
            )


def _is_timm(model: Any) -> bool:
    wrapped = getattr(getattr(model, "config", None), "model_type", None) == "timm_wrapper"
    return wrapped and not hasattr(model, "peft_config")


def _complete_timm_config(model: Any, path: str) -> None:
    """timm reads how images are prepared from `pretrained_cfg`, and so does AutoImageProcessor: write what the model
    knows where its config says nothing."""
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    if config.get("pretrained_cfg") is None:
        known = dict(model.timm_model.pretrained_cfg or {})
        config["pretrained_cfg"] = {name: known[name] for name in TIMM_FIELDS if known.get(name) is not None}
        write_text(path, json.dumps(config, indent=2, sort_keys=True))
