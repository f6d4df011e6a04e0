"""Models and data sets that the command line names: folders, files and Hub ids.

model    a folder that `save_pretrained` wrote, or a Hub id
data     a `.parquet`, `.csv`, `.json` or `.jsonl` file, a folder that `Dataset.save_to_disk` wrote, an image folder,
or a
         Hub id; ":NAME" at the end names the split (default: the only one, or "train")

Images become `pixel_values` with the model's own image processor, text becomes token ids with its tokenizer; columns
that are arrays already stay as they are.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, DataCollatorForLanguageModeling

LABELS = ("labels", "label", "fine_label")
IMAGES = ("image", "img", "pixel_values")
FILES = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json"}


def load_model(name: str) -> torch.nn.Module:
    """The model in a folder or on the Hub, of the class that its config names, in eval mode.

    Raises ValueError where there is none.
    """
    try:
        if os.path.isfile(os.path.join(name, "adapter_config.json")):
            import peft

            return peft.AutoPeftModel.from_pretrained(name).eval()
        return model_class(AutoConfig.from_pretrained(name)).from_pretrained(name).eval()
    except (OSError, ValueError) as error:
        raise ValueError(f"No model could be loaded from {name!r}: {_first_line(error)}") from error


@dataclass(frozen=True)
class FromConfig:
    """Makes a model with fresh weights from the config of another one (a folder or a Hub id)."""

    name: str

    def __call__(self) -> torch.nn.Module:
        config = AutoConfig.from_pretrained(self.name)
        return model_class(config)(config)


def model_class(config: Any) -> type:
    """The class that a config names, or the one that transformers would use to classify images or to model language."""
    for architecture in getattr(config, "architectures", None) or []:
        if hasattr(transformers, architecture):
            return getattr(transformers, architecture)
    for auto in (transformers.AutoModelForImageClassification, transformers.AutoModelForCausalLM):
        if type(config) in auto._model_mapping:
            return auto._model_mapping[type(config)]
    raise ValueError(f"config names no model class (architectures), and {type(config).__name__} has no usual one.")


def load_data(spec: str, model: str, *, label: str | None = None, text: str = "text", max_length: int = 512) -> Any:
    """A data set with the columns that the model takes, and `labels`.

    spec: see above. model: whose processor or tokenizer is used. label: column of the label; None: labels, label or
    fine_label, and for a causal LM the tokens themselves. text: column with the text. max_length: in tokens.

    Raises ValueError for a source or a column that does not exist.
    """
    data = _read(spec)
    columns = data.column_names
    chosen = label or next((name for name in LABELS if name in columns), None)
    if label is not None and label not in columns:
        raise ValueError(f"label={label!r} is no column of {spec!r}, which has {columns}.")
    image = next((name for name in IMAGES if name in columns), None)
    if image is not None:
        if chosen is None:
            raise ValueError(f"{spec!r} has the columns {columns}: name the label's column (label).")
        return _images(data, image, chosen, model)
    if text in columns:
        return _texts(data, text, chosen, model, max_length)
    if chosen is not None and chosen != "labels":
        data = data.rename_column(chosen, "labels")
    if "labels" not in data.column_names:
        raise ValueError(f"{spec!r} has the columns {columns}: no image, no {text!r}, and no label. Name them.")
    return data.with_format("torch")


def collator_for(data: Any, model: str) -> Any:
    """What makes a batch of such samples: padding for texts, transformers' default otherwise."""
    if "input_ids" not in data.column_names:
        return transformers.default_data_collator
    tokenizer = _tokenizer(model)
    if "labels" not in data.column_names:
        return DataCollatorForLanguageModeling(tokenizer, mlm=False)
    return transformers.DataCollatorWithPadding(tokenizer)


def _read(spec: str) -> Any:
    import datasets

    path, _, split = spec.rpartition(":")
    if os.path.exists(spec) or not path:
        path, split = spec, ""
    ending = os.path.splitext(path)[1]
    try:
        if os.path.isfile(path) and ending in FILES:
            return datasets.load_dataset(FILES[ending], data_files=path, split="train")
        if os.path.isfile(path):
            raise ValueError(f"files must end in one of {sorted(FILES)}")
        if os.path.isfile(os.path.join(path, "dataset_info.json")) or os.path.isfile(
            os.path.join(path, "dataset_dict.json")
        ):
            found = datasets.load_from_disk(path)
        else:
            found = datasets.load_dataset(path)
    except Exception as error:
        raise ValueError(f"No data set could be loaded from {spec!r}: {_first_line(error)}") from error
    if not isinstance(found, datasets.DatasetDict):
        return found
    split = split or (next(iter(found)) if len(found) == 1 else "train")
    if split not in found:
        raise ValueError(f"{spec!r}: there is no split {split!r}; there are {list(found)}. Name one as {path}:NAME.")
    return found[split]


def _images(data: Any, image: str, label: str, model: str) -> Any:
    import datasets

    if not isinstance(data.features[image], datasets.Image):  # arrays: processed before they were saved
        kept = data.select_columns([image, label]).rename_columns({image: "pixel_values", label: "labels"})
        return kept.with_format("torch")
    return data.select_columns([image, label]).with_transform(
        Processed(AutoImageProcessor.from_pretrained(model), image, label)
    )


@dataclass(frozen=True)
class Processed:
    """Rows of images and labels as the model takes them. (A class, so that other processes can have it.)"""

    processor: Any
    image: str
    label: str

    def __call__(self, rows: dict[str, list]) -> dict[str, Any]:
        pictures = [picture.convert("RGB") for picture in rows[self.image]]
        return {
            "pixel_values": self.processor(pictures, return_tensors="pt")["pixel_values"],
            "labels": rows[self.label],
        }


def _texts(data: Any, text: str, label: str | None, model: str, max_length: int) -> Any:
    tokenizer = _tokenizer(model)
    tokens = data.map(
        lambda rows: tokenizer(rows[text], truncation=True, max_length=max_length),
        batched=True,
        remove_columns=[name for name in data.column_names if name != label],
        desc="tokenize",
    )
    return tokens if label is None else tokens.rename_column(label, "labels") if label != "labels" else tokens


def _tokenizer(model: str) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
