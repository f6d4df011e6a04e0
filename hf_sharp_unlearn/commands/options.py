"""What the commands share: groups of options, and how models and data are named."""

import argparse
import os
from typing import Any

import torch

from ..sources import load_data, load_model

MODEL = "a folder that save_pretrained wrote, or a Hub id"
DATA = (
    "a .parquet, .csv, .json or .jsonl file, a saved data set, an image folder or a Hub id; :NAME at the end is a split"
)


def command(
    commands: Any, shared: argparse.ArgumentParser, name: str, short: str, long: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        parents=[shared],
        help=short,
        description=long,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


def data_group(parser: argparse.ArgumentParser) -> Any:
    data = parser.add_argument_group("data", DATA)
    data.add_argument("--label", help="column of the label; default: labels, label or fine_label")
    data.add_argument("--text", default="text", help="column of the text")
    data.add_argument("--max-length", type=int, default=512, help="of a text, in tokens")
    return data


def run_group(parser: argparse.ArgumentParser, folder: str) -> None:
    run = parser.add_argument_group("run")
    run.add_argument("--output-dir", default=folder, help="where the results are written")
    run.add_argument("--overwrite", action="store_true", help="replace results that are there already")
    run.add_argument("--batch-size", type=int, default=128, help="samples a batch")
    run.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, ...")


def columns_of(options: argparse.Namespace) -> dict[str, Any]:
    return {"label": options.label, "text": options.text, "max_length": options.max_length}


def data_of(options: argparse.Namespace, spec: str | None) -> Any:
    return None if spec is None else load_data(spec, options.model, **columns_of(options))


def model_of(options: argparse.Namespace, name: str | None) -> Any:
    return None if name is None else load_model(name).to(device_of(options))


def device_of(options: argparse.Namespace) -> torch.device:
    if options.device != "auto":
        return torch.device(options.device)
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def refuse_finished(options: argparse.Namespace, name: str) -> None:
    path = os.path.join(options.output_dir, name)
    if os.path.exists(path) and not options.overwrite:
        raise ValueError(f"{path} is there already: pass --overwrite to replace it, or another --output-dir.")
