"""Models and data sets that the command line names: folders, files and Hub ids.

model    a folder that `save_pretrained` wrote (an adapter too), or a Hub id
data     a `.parquet`, `.csv`, `.json` or `.jsonl` file, a folder that `Dataset.save_to_disk` wrote, an image folder,
         or a Hub id; ":NAME" at the end names the split, where there are several

Images become `pixel_values` with the model's own image processor, text becomes token ids with its tokenizer; columns
that are arrays already stay as they are.
"""

import hashlib
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
        if _is_adapter(name):
            return _adapted(name).eval()
        return model_class(AutoConfig.from_pretrained(name)).from_pretrained(name).eval()
    except (OSError, ValueError) as error:
        raise ValueError(f"No model could be loaded from {name!r}: {_first_line(error)}") from error


def _adapted(name: str) -> torch.nn.Module:
    """A LoRA or other adapter with its base model; the adapter is trainable, for attacks and landscapes."""
    import peft

    config = peft.PeftConfig.from_pretrained(name)
    classes = {"CAUSAL_LM": peft.AutoPeftModelForCausalLM, "SEQ_CLS": peft.AutoPeftModelForSequenceClassification}
    if config.task_type in classes:
        return classes[config.task_type].from_pretrained(name, is_trainable=True)
    base = model_class(AutoConfig.from_pretrained(config.base_model_name_or_path))
    return peft.PeftModel.from_pretrained(base.from_pretrained(config.base_model_name_or_path), name, is_trainable=True)


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
        return _images(_numbered(data, chosen, model, spec), image, chosen, model)
    if "input_ids" not in columns and text in columns:
        if label is None and _is_causal(model):
            chosen = None  # it learns the text; a class beside it is nothing to it
        return _texts(data if chosen is None else _numbered(data, chosen, model, spec), text, chosen, model, max_length)
    if chosen is not None and chosen != "labels":
        data = data.rename_column(chosen, "labels")
    if "labels" not in data.column_names and "input_ids" not in columns:
        raise ValueError(f"{spec!r} has the columns {columns}: no image, no {text!r}, and no label. Name them.")
    return data.with_format("torch") if "input_ids" not in columns else data


def _is_causal(model: str) -> bool:
    return model_class(_config_of(model)) in set(transformers.AutoModelForCausalLM._model_mapping.values())


def _is_adapter(model: str) -> bool:
    return os.path.isfile(os.path.join(model, "adapter_config.json"))


def _config_of(model: str) -> Any:
    return AutoConfig.from_pretrained(_base_of(model) if _is_adapter(model) else model)


def _base_of(model: str) -> str:
    import peft

    return peft.PeftConfig.from_pretrained(model).base_model_name_or_path


def _numbered(data: Any, label: str, model: str, spec: str) -> Any:
    """Labels as the model numbers its classes. Names (of folders, of a ClassLabel, or strings) go through the config's
    label2id: the numbers that a loader gives to the names it happens to find need not be the model's.

    Raises ValueError for names that the model does not have.
    """
    import datasets

    feature = data.features[label]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    if names is None and getattr(feature, "dtype", None) not in ("string", "large_string"):
        return data
    config = _config_of(model)
    ids = {str(name): int(number) for name, number in (getattr(config, "label2id", None) or {}).items()}
    found = names if names is not None else sorted(set(data[label]))
    missing = [name for name in found if name not in ids]
    if not missing:
        numbers = {name: ids[name] for name in found}
    elif names is not None and len(names) == len(ids) and all(name.startswith("LABEL_") for name in ids):
        return data  # the model's classes have no names, and the data has them all
    else:
        raise ValueError(
            f"{spec!r} has the classes {list(found)[:10]}, the model has {list(ids)[:10]}: {missing[:5]} cannot be "
            "told. Give the model's config the names (label2id), or a column of numbers (label)."
        )
    values = data[label]
    column = [numbers[value if isinstance(value, str) else names[value]] for value in values]
    return data.remove_columns(label).add_column(label, column)


def collator_for(data: Any, model: str) -> Any:
    """What makes a batch of such samples: padding for texts, transformers' default otherwise."""
    if "input_ids" not in data.column_names:
        return transformers.default_data_collator
    tokenizer = _tokenizer(model)
    if "labels" not in data.column_names:
        return DataCollatorForLanguageModeling(tokenizer, mlm=False)
    if hasattr(data.features["labels"], "feature"):  # a label a token
        return transformers.DataCollatorForSeq2Seq(tokenizer)
    return transformers.DataCollatorWithPadding(tokenizer)


def fingerprint(spec: str, data: Any) -> str:
    """Changes when the data does: the hash of a file, or what `datasets` knows of anything else."""
    if not os.path.isfile(spec):
        return str(data._fingerprint)
    with open(spec, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(spec: str) -> Any:
    import datasets

    path, _, split = spec.rpartition(":")
    if os.path.exists(spec) or not path:
        path, split = spec, ""
    ending = os.path.splitext(path)[1]
    try:
        if os.path.isfile(path) and ending in FILES:
            found = datasets.load_dataset(FILES[ending], data_files=path, split="train")
        elif os.path.isfile(path):
            raise ValueError(f"files must end in one of {sorted(FILES)}")
        elif any(os.path.isfile(os.path.join(path, name)) for name in ("dataset_info.json", "dataset_dict.json")):
            found = datasets.load_from_disk(path)
        elif _holds_images(path):
            found = datasets.load_dataset("imagefolder", data_dir=path, drop_labels=False)
        else:
            found = datasets.load_dataset(path)
    except Exception as error:
        raise ValueError(f"No data set could be loaded from {spec!r}: {_first_line(error)}") from error
    if not isinstance(found, datasets.DatasetDict):
        if split:
            raise ValueError(f"{spec!r}: {path} has no splits. Leave :{split} out.")
        return found
    if split and split not in found or not split and len(found) > 1:
        raise ValueError(f"{spec!r}: name one of the splits {list(found)}, as {path}:NAME.")
    return found[split or next(iter(found))]


def _holds_images(path: str) -> bool:
    """A folder of folders of images: one per class."""
    if not os.path.isdir(path):
        return False
    endings = {
        os.path.splitext(name)[1].lower()
        for folder in os.scandir(path)
        if folder.is_dir()
        for name in os.listdir(folder.path)
    }
    return bool(endings & {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


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
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError):
        if not _is_adapter(model):
            raise
        tokenizer = AutoTokenizer.from_pretrained(_base_of(model))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
