"""Models and data sets that the command line names: folders, files and Hub ids.

model    a folder that `save_pretrained` wrote (an adapter too), or a Hub id
data     see `tables`

Images become `pixel_values` with the model's own image processor, text becomes token ids with its tokenizer; columns
that are arrays already stay as they are.
"""

import hashlib
import os
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, DataCollatorForLanguageModeling
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from .caches import mapped
from .faults import first_line
from .images import ImagesInMemory, Levels, cached_images, picture_mode
from .pictures import Pictures, undecoded
from .tables import read_table
from .whole_models import check_adapter, whole_model

LABELS = ("labels", "label", "fine_label")
IMAGES = ("image", "img", "pixel_values")


def load_model(name: str, dtype: str = "auto", new_head: bool = False) -> torch.nn.Module:
    """The model in a folder or on the Hub, of the class that its config names, in eval mode.

    dtype: of its weights; "auto": as they were saved. new_head: see `whole_models`. Raises ValueError where there is
    none, or not the whole one.
    """
    try:
        if _is_adapter(name):
            return _adapted(name, dtype).eval()
        return whole_model(model_class(AutoConfig.from_pretrained(name)), name, new_head=new_head, dtype=dtype).eval()
    except MemoryError:
        raise
    except Exception as error:  # what the libraries raise for files that are cut off, or are no weights
        if isinstance(error, RuntimeError) and "out of memory" in str(error):
            raise
        raise ValueError(f"No model could be loaded from {name!r}: {first_line(error)}") from error


def _adapted(name: str, dtype: str) -> torch.nn.Module:
    """A LoRA or other adapter with its base model; the adapter is trainable, for attacks and landscapes."""
    import peft

    config = peft.PeftConfig.from_pretrained(name)
    base = config.base_model_name_or_path
    if not base:
        raise ValueError("its adapter_config.json names no base model (base_model_name_or_path)")
    classes = {"CAUSAL_LM": transformers.AutoModelForCausalLM,
               "SEQ_CLS": transformers.AutoModelForSequenceClassification}  # fmt: skip
    cls = classes.get(config.task_type) or model_class(AutoConfig.from_pretrained(base))
    given = getattr(config, "modules_to_save", None) or ()
    model = whole_model(cls, base, given=given, dtype=dtype)
    if os.path.isfile(os.path.join(name, "tokenizer_config.json")) and config.task_type in classes:
        tokens = len(AutoTokenizer.from_pretrained(name))
        if tokens > model.get_input_embeddings().weight.shape[0]:  # as peft does: tokens that came with the adapter
            model.resize_token_embeddings(tokens)
    with warnings.catch_warnings():  # peft warns; where its file is at hand it is read for the names
        local = os.path.isfile(os.path.join(name, "adapter_model.safetensors"))
        warnings.filterwarnings("ignore" if local else "error", message="Found missing adapter keys")
        adapted = peft.PeftModel.from_pretrained(model, name, is_trainable=True)
    check_adapter(adapted, name)
    return adapted


@dataclass(frozen=True)
class FromConfig:
    """Makes a model with fresh weights from the config of another one (a folder or a Hub id)."""

    name: str

    @property
    def fingerprint(self) -> str:
        """Another one for another config under the same name."""
        config = AutoConfig.from_pretrained(self.name).to_json_string(use_diff=False)
        return hashlib.sha256(config.replace(self.name, "").encode()).hexdigest()

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


def load_data(spec: str, model: str, **columns: Any) -> Any:
    """A data set with the columns that the model takes, and `labels`: `prepare` of `read_table`."""
    return prepare(read_table(spec), spec, model, **columns)


def prepare(
    data: Any,
    spec: str,
    model: str,
    *,
    label: str | None = None,
    text: str = "text",
    max_length: int = 512,
    images: str = "process",
    augmentation: Any = None,
    device: Any = "cpu",
) -> Any:
    """A table with the columns that the model takes, and `labels`; its rows stay in their order.

    spec: what the table is called, for errors. model: whose processor or tokenizer is used. label: column of the
    label; None: labels, label or fine_label, and for a causal LM the tokens themselves. text: column with the text.
    max_length: in tokens. images: what becomes of pictures: "process" prepares them each time they are asked for,
    "disk" once, into a cache, "memory" once, into a tensor on `device`, and "auto" takes memory up to 1 GiB, then disk.
    augmentation: see `images.ImagesInMemory`; not with "process".

    Raises ValueError for a column that does not exist.
    """
    columns = data.column_names
    chosen = label or next((name for name in LABELS if name in columns), None)
    if label is not None and label not in columns:
        raise ValueError(f"label={label!r} is no column of {spec!r}, which has {columns}.")
    image = next((name for name in IMAGES if name in columns), None)
    if image is not None:
        if chosen is None:
            raise ValueError(f"{spec!r} has the columns {columns}: name the label's column (label).")
        return _images(_numbered(data, chosen, model, spec), image, chosen, model, images, augmentation, device)
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
    return model_class(_config_of(model)).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


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
    found = names if names is not None else sorted({value for value in data[label] if value is not None})
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
    values = list(data.with_format(None)[label][:])
    empty = [row for row, value in enumerate(values) if value is None or value == -1]
    if empty:
        raise ValueError(f"{spec!r}: {len(empty)} rows have no label ({label}), e.g. {empty[:5]}. Leave them out.")
    column = [numbers[value if isinstance(value, str) else names[value]] for value in values]
    return data.remove_columns(label).add_column(label, column)


def collator_for(data: Any, model: str) -> Any:
    """What makes a batch of such samples: padding for texts, transformers' default otherwise."""
    if "input_ids" not in getattr(data, "column_names", ()):
        return transformers.default_data_collator
    tokenizer = _tokenizer(model)
    if "labels" not in data.column_names:
        return DataCollatorForLanguageModeling(tokenizer, mlm=False)
    if hasattr(data.features["labels"], "feature"):  # a label a token
        return transformers.DataCollatorForSeq2Seq(tokenizer)
    return transformers.DataCollatorWithPadding(tokenizer)


def _images(data: Any, image: str, label: str, model: str, how: str, augmentation: Any, device: Any) -> Any:
    import datasets

    if not isinstance(data.features[image], datasets.Image):  # arrays: processed before they were saved
        if augmentation is not None:
            raise ValueError(f"augmentation: the column {image!r} holds arrays, not pictures. Leave it out.")
        kept = data.select_columns([image, label]).rename_columns({image: "pixel_values", label: "labels"})
        return kept.with_format("torch")
    data, processor = data.select_columns([image, label]), AutoImageProcessor.from_pretrained(model)
    data = undecoded(data, image)
    if how == "auto":
        size = Levels(processor, image, label)(data[:1], [0])["pixel_values"].size * len(data)
        how = "memory" if size <= 2**30 else "disk"
    if how == "memory":
        return ImagesInMemory.from_dataset(data, processor, image, label, device, augmentation)
    if how == "disk":
        return cached_images(data, processor, image, label, augmentation)
    if augmentation is not None:
        raise ValueError("augmentation: pictures that are prepared each time cannot have it. Use images='auto'.")
    return data.with_transform(Processed(processor, image, label, data))


@dataclass(frozen=True)
class Processed:
    """Rows of images and labels as the model takes them. (A class, so that other processes can have it.)

    source: the table itself, to name the row of a picture that cannot be opened.
    """

    processor: Any
    image: str
    label: str
    source: Any = field(default=None, repr=False, compare=False)

    @property
    def label_column(self) -> str:
        return self.label  # it goes through unchanged: labels can be checked without decoding

    def __call__(self, rows: dict[str, list]) -> dict[str, Any]:
        pictures = Pictures(picture_mode(self.processor), self.image, self.source)
        return {
            "pixel_values": self.processor(pictures(rows[self.image]), return_tensors="pt")["pixel_values"],
            "labels": rows[self.label],
        }


def _texts(data: Any, text: str, label: str | None, model: str, max_length: int) -> Any:
    tokenizer = _tokenizer(model)
    tokens = mapped(
        data,
        lambda rows: tokenizer(rows[text], truncation=True, max_length=max_length),
        batched=True,
        remove_columns=[name for name in data.column_names if name != label],
        desc="tokenize",
    )
    empty = [row for row, ids in enumerate(tokens["input_ids"]) if not ids]
    if empty:
        raise ValueError(f"{len(empty)} rows have no text ({text}), e.g. {empty[:5]}. Leave them out.")
    return tokens if label is None else tokens.rename_column(label, "labels") if label != "labels" else tokens


def processing_class_of(data: Any, model: str) -> Any:
    """What is saved beside a model so that others can feed it: its tokenizer or image processor, or None."""
    if "input_ids" in getattr(data, "column_names", ()):
        return _tokenizer(model)
    if _config_of(model).model_type == "timm_wrapper":
        return None  # its processor is read from its config
    try:
        return AutoImageProcessor.from_pretrained(_base_of(model) if _is_adapter(model) else model)
    except (OSError, ValueError, KeyError):
        return None


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
