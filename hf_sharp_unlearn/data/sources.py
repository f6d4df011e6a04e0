"""Models and data sets that the command line names: folders, files and Hub ids.

model    a folder that `save_pretrained` wrote (an adapter too), or a Hub id
data     see `tables`

Images become `pixel_values` with the model's own image processor, text becomes token ids with its tokenizer; columns
that are arrays already stay as they are.
"""

import hashlib
import json
import os
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

from .classes import judges_samples, order_of, problem_of
from .configs import base_of, config_of, is_adapter, is_causal, model_class, position_limit
from .faults import first_line
from .images import ImagesInMemory, Levels, cached_images, picture_mode
from .labels import as_labels
from .pictures import Pictures, undecoded
from .tables import read_table
from .texts import check_tokens, text_collator, tokenized, tokenizer_of, with_padding_id
from .whole_models import check_adapter, whole_model

LABELS = ("labels", "label", "fine_label")
IMAGES = ("image", "img", "pixel_values")


def load_model(name: str, dtype: str = "auto", new_head: bool = False) -> torch.nn.Module:
    """The model in a folder or on the Hub, of the class that its config names, in eval mode.

    dtype: of its weights; "auto": as they were saved. new_head: see `whole_models`. Raises ValueError where there is
    none, or not the whole one.
    """
    try:
        if is_adapter(name):
            return with_padding_id(_adapted(name, dtype).eval(), name)
        cls = model_class(AutoConfig.from_pretrained(name))
        return with_padding_id(whole_model(cls, name, new_head=new_head, dtype=dtype).eval(), name)
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
        return with_padding_id(model_class(config)(config), self.name)


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
    max_length: int | None = None,
    images: str = "process",
    augmentation: Any = None,
    device: Any = "cpu",
    labels_of: str | None = None,
) -> Any:
    """A table with the columns that the model takes, and `labels`; its rows stay in their order.

    spec: what the table is called, for errors. model: whose processor or tokenizer is used. label: column of the
    label; None: labels, label or fine_label, and for a causal LM the tokens themselves. text: column with the text.
    max_length: in tokens; None: see `texts.tokenized`. images: what becomes of pictures: "process" prepares them each
    time they are asked for, "disk" once, into a cache, "memory" once, into a tensor on `device`, and "auto" takes
    memory up to 1 GiB, then disk. augmentation: see `images.ImagesInMemory`; not with "process". labels_of: another
    model, whose numbers the labels get: of one that is compared with it.

    Raises ValueError for a column that does not exist, and for labels and texts that the model cannot take.
    """
    columns = data.column_names
    chosen = label or next((name for name in LABELS if name in columns), None)
    if label is not None and label not in columns:
        raise ValueError(f"label={label!r} is no column of {spec!r}, which has {columns}.")
    image = next((name for name in IMAGES if name in columns), None)
    if image is not None:
        if chosen is None:
            raise ValueError(f"{spec!r} has the columns {columns}: name the label's column (label).")
        data = as_labels(data, chosen, model, spec, labels_of)
        images = "process" if data.features[chosen].dtype.startswith("float") else images  # the others keep classes
        return _images(data, image, chosen, model, images, augmentation, device)
    if "input_ids" not in columns and text in columns:
        if label is None and is_causal(model):
            chosen = None  # it learns the text; a class beside it is nothing to it
        data = data if chosen is None else as_labels(data, chosen, model, spec, labels_of)
        return tokenized(data, text, chosen, model, max_length, spec)
    if chosen is not None:
        data = as_labels(data, chosen, model, spec, labels_of)
        data = data if chosen == "labels" else data.rename_column(chosen, "labels")
    if "labels" not in data.column_names and "input_ids" not in columns:
        raise ValueError(f"{spec!r} has the columns {columns}: no image, no {text!r}, and no label. Name them.")
    if "input_ids" in columns:
        check_tokens(data, model, spec)
    return data.with_format("torch") if "input_ids" not in columns else data


def preparation_of(data: Any, model: str) -> str:
    """What becomes of a table depends on this of a model: where it is equal, what was prepared for one serves both."""
    config = config_of(model)
    parts = {name: getattr(config, name, None) for name in ("id2label", "num_labels", "problem_type", "vocab_size")}
    if any(name in data.column_names for name in IMAGES):
        processor = processing_class_of(None, model)
        parts |= {"processor": None if processor is None else processor.to_dict()}
    else:
        try:
            tokenizer = tokenizer_of(model)
            backend = getattr(tokenizer, "backend_tokenizer", None)
            words = sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str()
            parts |= {"tokenizer": words, "pad": tokenizer.pad_token_id, "length": tokenizer.model_max_length}
        except (OSError, ValueError):
            pass  # rows of numbers
    return json.dumps({**parts, "positions": position_limit(config)}, default=str, sort_keys=True)


def check_classes_fit(model: str, other: str, name: str) -> None:
    """Raise ValueError, with both lists, for two classifiers whose classes do not fit each other."""
    configs = [config_of(one) for one in (model, other)]
    if all(judges_samples(model_class(config)) for config in configs):
        order_of(*configs, name)


def problem_of_source(model: str) -> str | None:
    """`classes.problem_of` of a folder or Hub id."""
    config = config_of(model)
    return problem_of(config, model_class(config))


def collator_for(data: Any, model: str) -> Any:
    """What makes a batch of such samples: padding for texts, transformers' default otherwise."""
    if "input_ids" not in getattr(data, "column_names", ()):
        return transformers.default_data_collator
    return text_collator(data, model)


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


def processing_class_of(data: Any, model: str) -> Any:
    """What is saved beside a model so that others can feed it: its tokenizer or image processor, or None."""
    if "input_ids" in getattr(data, "column_names", ()):
        return tokenizer_of(model)
    if config_of(model).model_type == "timm_wrapper":
        return None  # its processor is read from its config
    try:
        return AutoImageProcessor.from_pretrained(base_of(model) if is_adapter(model) else model)
    except (OSError, ValueError, KeyError):
        return None
