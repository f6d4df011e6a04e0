"""Rows of results: what each says of the machine, how they are kept, and the percentiles that they give."""

import csv
import datetime
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence

import torch
import transformers

from hf_sharp_unlearn import __version__
from hf_sharp_unlearn.benchmarks.parts.options import results_folder


def surroundings(device: torch.device) -> dict:
    """What a row says of the machine and the versions."""
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True)
        commit = commit.stdout.strip() if commit.returncode == 0 else ""
    except OSError:
        commit = ""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = ""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU, {torch.get_num_threads()} threads",
        "machine": platform.machine(),
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "version": __version__,
        "torch": torch.__version__,
        "triton": triton_version,
        "transformers": transformers.__version__,
    }


def append(path: str, rows: Sequence[dict]) -> None:
    """Write rows to the end of a CSV file; all have the columns of the first.

    Raises ValueError where the file has other columns: from then on its rows would be read wrongly.
    """
    columns, old = list(rows[0]), None
    if os.path.exists(path):
        with open(path, newline="") as file:
            old = next(csv.reader(file), None)
    if old not in (None, columns):
        raise ValueError(f"{path} has the columns {old}, new rows have {columns}. Choose another --output-dir.")
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, columns)
        if old is None:
            writer.writeheader()
        writer.writerows(rows)


def save(rows: Sequence[dict], output_dir: str | None, name: str) -> None:
    """Append rows to the file `name` in the folder of --output-dir, and say so."""
    path = os.path.join(results_folder(output_dir), name)
    append(path, rows)
    print(f"appended to {os.path.relpath(path)}")


def quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """20th, 50th and 80th percentile."""
    if len(values) < 2:
        return (values[0],) * 3
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return cuts[1], cuts[4], cuts[7]
