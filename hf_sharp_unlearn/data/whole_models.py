"""Models whose weights all come from their files. transformers draws what is missing at random, leaves out what does
not fit, and warns: what is made of such a model says nothing about the one that was meant."""

import os
from collections.abc import Collection
from typing import Any

import torch
from safetensors import safe_open


def whole_model(cls: Any, name: str, *, new_head: bool = False, given: Collection[str] = (), **options: Any) -> Any:
    """`cls.from_pretrained(name, **options)`, refused if a weight of the model is missing in its files, has another
    size there, or is not the model's.

    new_head: go on, and say so, if this concerns weights outside of the body (`base_model`) only. given: modules whose
    weights come from elsewhere, an adapter's `modules_to_save`.

    Raises ValueError with the names.
    """
    model, found = cls.from_pretrained(name, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    missing = [key for key in sorted(found["missing_keys"]) if not set(key.split(".")) & set(given)]
    sizes = {key: f"{key} ({_size(saved)} in the files, {_size(own)} in the model)"
             for key, saved, own in sorted(found["mismatched_keys"])}  # fmt: skip
    missing = [key for key in missing if key not in sizes]
    unexpected = sorted(found["unexpected_keys"])
    faults = [
        f"{what} {_some(names)}"
        for what, names in (
            ("its files lack", missing),
            ("of another size are", list(sizes.values())),
            ("not the model's are", unexpected),
        )
        if names
    ]
    if not faults:
        return model
    said = f"{type(model).__name__}: {'; '.join(faults)}"
    body = [key for key in (*missing, *sizes) if _is_of_body(model, key)]
    if not new_head:
        raise ValueError(
            f"{said}. What is missing would be random, what is left over would be lost. Name the folder of the whole "
            "model, or the class that it was saved from in config.json (architectures)."
            + ("" if body else " sharp-unlearn unlearn --allow_new_head draws a new head.")
        )
    if body:
        raise ValueError(f"{said}. {_some(body)} are no head: a model without them cannot be used.")
    print(f"--allow_new_head: {name}, {said}; what is missing or of another size was drawn anew", flush=True)
    return model


def check_adapter(model: Any, folder: str) -> None:
    """Raise ValueError if an adapter's file lacks weights of the adapter, or has others. model: a `PeftModel`."""
    import peft

    path = os.path.join(folder, "adapter_model.safetensors")
    if not os.path.isfile(path):
        return  # of the Hub, or a pickle: peft has read it
    with safe_open(path, framework="pt") as file:
        there = set(file.keys())
    own = set(peft.get_peft_model_state_dict(model, save_embedding_layers=False))
    missing = sorted(own - there)
    unexpected = sorted(key for key in there - own if "lora_" in key or key.rpartition(".")[0] in own)
    if missing or unexpected:
        which = [f"it lacks {_some(missing)}"] * bool(missing) + [f"not its own are {_some(unexpected)}"] * bool(
            unexpected
        )
        raise ValueError(
            f"the adapter in {path} is not whole: {'; '.join(which)}. What is missing would be random. Save it again, "
            "or mend adapter_config.json."
        )


def _is_of_body(model: Any, key: str) -> bool:
    timm = getattr(model, "timm_model", None)
    if timm is not None:
        head = next((name for name, part in timm.named_modules() if part is timm.get_classifier()), None)
        return head is None or not key.startswith(f"timm_model.{head}.")
    prefix = getattr(model, "base_model_prefix", "")
    inside = bool(prefix) and hasattr(model, prefix) and getattr(model, prefix) is not model
    return "pooler" not in key and (not inside or key.startswith(f"{prefix}."))


def _size(shape: Any) -> str:
    return " x ".join(map(str, torch.Size(shape))) or "one number"


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
