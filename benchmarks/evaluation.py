"""What does a report cost beyond the forward passes, and how much memory does the Wasserstein distance take?

    python -m hf_sharp_unlearn.benchmarks.evaluation --data FOLDER       images of a parquet folder with train and test
    python -m hf_sharp_unlearn.benchmarks.evaluation                     generated images

A ResNet-18 looks at 10,000 images: 1,000 to forget, 5,000 retained, 4,000 for testing. Within each round:
    forward    the model on each split once, in eval mode, nothing else; the unit of the ratios
    report     `evaluate_unlearning` without SVC attacks: the same passes with features, and every metric of one model
    plots      drawing and writing
The SVC attacks are timed apart, once (they are capped at 5,000 samples a side; here 4,000, the size of the test set).
Rows are appended to evaluation.csv.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader
from transformers import default_data_collator

from hf_sharp_unlearn import UnlearningReport, evaluate_unlearning
from hf_sharp_unlearn.analysis import fine_tune
from hf_sharp_unlearn.benchmarks.parts.images import Images, read_images
from hf_sharp_unlearn.benchmarks.parts.networks import Classifier
from hf_sharp_unlearn.benchmarks.parts.options import parser_of, positive
from hf_sharp_unlearn.benchmarks.parts.rows import quantiles, save, surroundings
from hf_sharp_unlearn.metrics import svc_judgements
from hf_sharp_unlearn.runtime import progress_bar

SIZES = {"forget": 1000, "retain": 5000, "test": 4000}
MEMORY = """
import numpy as np
from hf_sharp_unlearn.metrics import wasserstein
draw = np.random.default_rng(0)
x, y = (draw.normal(size=(10_000, 2048)).astype(np.float32) for _ in range(2))
def peak():  # of this program: the process's own record begins with that of its parent
    return next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
before = peak()
for p in (1, 2):
    wasserstein(x, y, p)
print(before, peak())
"""


def peak_memory() -> tuple[float, float]:
    """GiB of a fresh process with two sets of 10,000 x 2,048 features: before, and at the peak of W_1 and W_2."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    return tuple(int(kilobytes) / 2**20 for kilobytes in done.stdout.split())


def sets_of(data: str | None) -> tuple[dict[str, Images], int]:
    """({split: images}, number of classes). Read, or generated: noise around one centre a class."""
    members = SIZES["forget"] + SIZES["retain"]
    if data is None:
        draw = torch.Generator().manual_seed(0)
        labels = torch.randint(100, (sum(SIZES.values()),), generator=draw)
        centres = torch.randn(100, 3, 32, 32, generator=draw)
        whole = Images(centres[labels] + torch.randn(len(labels), 3, 32, 32, generator=draw), labels)
        parts = whole.select(torch.arange(members)), whole.select(torch.arange(members, len(labels)))
    else:
        train, test, _ = read_images(data)
        draw = torch.Generator().manual_seed(0)
        parts = (
            train.select(torch.randperm(len(train), generator=draw)[:members]),
            test.select(torch.arange(SIZES["test"])),
        )
    forget = SIZES["forget"]
    sets = {"forget": parts[0].select(torch.arange(forget)), "retain": parts[0].select(torch.arange(forget, members))}
    return {**sets, "test": parts[1]}, int(parts[0].labels.max()) + 1


def forward_seconds(model: nn.Module, sets: dict[str, Images], batch: int) -> float:
    start = time.perf_counter()
    model.eval()
    with torch.no_grad():
        for data in sets.values():
            for inputs in DataLoader(data, batch, collate_fn=default_data_collator):
                model(**inputs)
    return time.perf_counter() - start


def seconds_of(model: nn.Module, sets: dict[str, Images], batch: int) -> tuple[dict[str, float], UnlearningReport]:
    """One round: ({part: seconds}, the report)."""
    seconds = {"forward": forward_seconds(model, sets, batch)}
    start = time.perf_counter()
    report = evaluate_unlearning(model, **sets, svc_samples=0, batch_size=batch, progress=False)
    seconds["report"] = time.perf_counter() - start
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report.save(folder)
    seconds["plots"] = time.perf_counter() - start
    return seconds, report


def measure(options: argparse.Namespace) -> dict:
    """The row."""
    sets, classes = sets_of(options.data)
    torch.manual_seed(0)
    model = fine_tune(
        Classifier(classes, options.cifar_stem), ConcatDataset([sets["forget"], sets["retain"]]), options.train_steps,
        learning_rate=1e-3, name="train",
    )  # fmt: skip
    rounds = []
    for _ in progress_bar(range(options.rounds + 1), desc="rounds"):
        seconds, report = seconds_of(model, sets, options.batch)
        rounds.append(seconds)
    rounds = rounds[1:]  # the first is a warm-up
    low, middle, high = quantiles([seconds["report"] / seconds["forward"] for seconds in rounds])
    outputs = report.outputs["unlearned"]
    start = time.perf_counter()
    _, side = svc_judgements(outputs["retain"], outputs["test"], outputs["forget"])
    svc = time.perf_counter() - start
    before, peak = peak_memory()
    return {
        "part": "evaluation",
        "data": os.path.basename(os.path.normpath(options.data)) if options.data else "generated",
        "stem": "3x3" if options.cifar_stem else "7x7",
        "images": sum(map(len, sets.values())),
        "report_to_forward_20": round(low, 3),
        "report_to_forward_50": round(middle, 3),
        "report_to_forward_80": round(high, 3),
        **{f"seconds_{part}": round(statistics.median(r[part] for r in rounds), 2) for part in rounds[0]},
        "seconds_svc": round(svc, 1),
        "svc_samples_a_side": side,
        "wasserstein_gib_before": round(before, 2),
        "wasserstein_gib_peak": round(peak, 2),
        "process_gib_peak": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "rounds": options.rounds,
        **surroundings(torch.device("cpu")),
    }


def main(argv: list[str] | None = None) -> None:
    parser = parser_of(__doc__, rounds=5)
    parser.add_argument("--data", help="folder with train*.parquet and test*.parquet; default: generated images")
    parser.add_argument("--cifar-stem", action="store_true", help="a 3 x 3 stem without pooling")
    parser.add_argument(
        "--train-steps", type=positive, default=200, help="of AdamW before, so that there is something to see"
    )
    parser.add_argument("--batch", type=positive, default=128, help="samples a batch")
    options = parser.parse_args(argv)
    row = measure(options)
    print("\n".join(f"{name:>24}  {value}" for name, value in row.items()))
    save([row], options.output_dir, "evaluation.csv")


if __name__ == "__main__":
    main()
