"""What the config of a model says, without its weights: its class, its base model, how many positions it has."""

import os
from typing import Any

import torch
import transformers
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING,
)

from .faults import first_line


def model_class(config: Any) -> type:
    """The class that a config names, or the one that transformers would use to classify images or to model language."""
    for architecture in getattr(config, "architectures", None) or []:
        if hasattr(transformers, architecture):
            return getattr(transformers, architecture)
    for auto in (transformers.AutoModelForImageClassification, transformers.AutoModelForCausalLM):
        if type(config) in auto._model_mapping:
            return auto._model_mapping[type(config)]
    raise ValueError(f"config names no model class (architectures), and {type(config).__name__} has no usual one.")


def is_adapter(model: str) -> bool:
    return os.path.isfile(os.path.join(model, "adapter_config.json"))


def base_of(model: str) -> str:
    """The base model of an adapter."""
    import peft

    return peft.PeftConfig.from_pretrained(model).base_model_name_or_path


def config_of(model: str) -> Any:
    """The config of a model, or of an adapter's base model; one that an adapter was saved with comes first: it knows
    the classes of a head that the adapter brings along. Raises ValueError where there is none."""
    try:
        if is_adapter(model) and not os.path.isfile(os.path.join(model, "config.json")):
            return AutoConfig.from_pretrained(base_of(model))
        return AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ValueError(f"No model could be loaded from {model!r}: {first_line(error)}") from error


def is_causal(model: str) -> bool:
    return model_class(config_of(model)).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


def reads_forward_only(config: Any) -> bool:
    """True of decoders: what a token sees does not depend on what follows it, and positions are counted from 0."""
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING


def position_limit(config: Any) -> int | None:
    """The most tokens that a text may have; None where the config sets no limit."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    if not isinstance(limit, int) or limit <= 0:
        return None
    return min([limit, *_tables_of_positions(config)])


def _tables_of_positions(config: Any) -> list[int]:
    """Rows that a table of positions has for texts, where it counts from behind its padding row (RoBERTa and its kin):
    read off the model itself, made without memory."""
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        return []
    try:
        with torch.device("meta"):
            modules = dict(model_class(config)(config).named_modules())
    except Exception:  # a model that needs more than its config: what the config says must do
        return []
    return [
        module.num_embeddings - module.padding_idx - 1
        for name, module in modules.items()
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
