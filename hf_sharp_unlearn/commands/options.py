"""Options that several commands share, and what they stand for: data, models, the folder of the results."""

import os
from dataclasses import dataclass, field
from typing import Any

import torch

from ..data import load_data, load_model
from ..run import reaches_its_end
from .folders import claim

MODEL = "a folder that save_pretrained wrote, or a Hub id"
DATA = (
    "a .parquet, .csv, .json or .jsonl file, a saved data set, an image folder or a Hub id; :NAME at the end is a split"
)


def option(text: str, default: Any = None, **metadata: Any) -> Any:
    """A field with its help text; lists are made anew for each instance."""
    metadata = {"help": text.replace("%", "%%"), **metadata}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def option_of(name: str) -> str:
    """A field as it is written on the command line."""
    return "--" + name.replace("_", "-")


def required(text: str, **metadata: Any) -> Any:
    return field(metadata={"help": text.replace("%", "%%"), **metadata})


@dataclass
class Columns:
    """Which columns of the data are what."""

    _argument_group_name = "columns"

    label: str | None = option("column of the label; default: labels, label or fine_label")
    text: str = option("column of the text", "text")
    max_length: int | None = option("of a text, in tokens; default: 512, or the model's positions if these are fewer")

    def as_arguments(self) -> dict[str, Any]:
        return {"label": self.label, "text": self.text, "max_length": self.max_length}

    def load(self, spec: str | None, model: str) -> Any:
        return None if spec is None else load_data(spec, model, **self.as_arguments())


@dataclass
class Run:
    """Where the results go, and on what they are computed."""

    _argument_group_name = "run"

    output_dir: str | None = option(
        "where the results are written; default: a folder that is named by what it holds, e.g. unlearning_report"
    )
    overwrite: bool = option("replace results that are there already", False)
    batch_size: int = option("samples a batch", 128)
    seed: int = option("of everything that is drawn", 0)
    device: str = option("auto, cpu, cuda, mps, ...", "auto")

    def on_device(self) -> torch.device:
        if self.device != "auto":
            return torch.device(self.device)
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")

    def load_model(self, name: str | None) -> Any:
        return None if name is None else load_model(name).to(self.on_device())

    def start(self, folder: str, last: str) -> None:
        """Name the folder, try and lock it (see `folders`), refuse to repeat what has been done. last: the file that a
        finished command leaves."""
        self.output_dir = self.output_dir or folder
        claim(self.output_dir)
        refuse_finished(self.output_dir, last, self.overwrite)


def refuse_finished(folder: str, last: str, overwrite: bool) -> None:
    """last: the file that a finished command leaves; one that is cut off, by a full disk say, does not count."""
    path = os.path.join(folder, last)
    if os.path.exists(path) and not overwrite and reaches_its_end(path):
        raise ValueError(f"{path} is there already: pass --overwrite to replace it, or another --output-dir.")
