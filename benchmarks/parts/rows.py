"""Rows of results: what each says of the machine, how they are kept, and the percentiles that they give."""

import argparse
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

BENCHMARKS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number >= 1")
    return value


def results_folder(given: str | None) -> str:
    """The folder that was asked for, or benchmarks/results in a checkout; made where there is none."""
    here = os.path.join(BENCHMARKS, "results")
    folder = given or (here if os.path.isdir(here) else "benchmark_output")
    os.makedirs(folder, exist_ok=True)
    return folder


def surroundings(device: torch.device) -> dict:
    """What a row says of the machine and the versions."""
    gpu = device.type == "cuda"
    try:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=BENCHMARKS, capture_output=True, text=True)
        commit = commit.stdout.strip() if commit.returncode == 0 else ""
    except OSError:
        commit = ""
    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = ""
    return {
        "device": torch.cuda.get_device_name(device) if gpu else f"CPU, {torch.get_num_threads()} threads",
        "machine": platform.machine(),
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "version": __version__,
        "torch": torch.__version__,
        "triton": version,
        "transformers": transformers.__version__,
    }


def append(path: str, rows: list[dict]) -> None:
    new = not os.path.exists(path)
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        if new:
            writer.writeheader()
        writer.writerows(rows)
    print(f"appended to {os.path.relpath(path)}")


def quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """20th, 50th and 80th percentile."""
    if len(values) < 2:
        return (values[0],) * 3
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return cuts[1], cuts[4], cuts[7]
