"""Saved models that load elsewhere: with plain `from_pretrained`, and those of timm with timm too."""

import json
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..runtime import write_text

TIMM_PREFIX = "timm_model."
# What timm needs of a model's configuration, and transformers of an image processor's.
TIMM_FIELDS = ("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode", "pool_size", "first_conv",
               "classifier", "fixed_input_size")  # fmt: skip


def names_for_others(model: Any, state_dict: Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
    """The state to save: of a timm model, weights under timm's names, which both libraries read."""
    if not _is_timm(model):
        return state_dict
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
