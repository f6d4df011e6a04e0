"""How fast are pictures loaded, beside how fast a model learns them?

    python -m hf_sharp_unlearn.benchmarks.loading [--data FILE.parquet] [--size 32]

    process         a `datasets.Dataset` whose transform decodes and prepares each picture whenever it is asked for
    disk            `cached_images`: decoded once, 8-bit levels on disk
    memory          `ImagesInMemory`: decoded once, 8-bit levels in memory
    memory_crop     the same with `CropFlip`; disk_crop likewise
    step            NegGrad+ on a timm ResNet-18 (a 3 x 3 stem up to 64 pixels), the batch at hand already: a whole step

All in the main process, in the order of a run (`StreamDataset`, transformers' collator); pictures per second, all ways
in each round. A way that is faster than `step` does not hold the model up. Rows are appended to loading.csv.
"""

import argparse
import io
import os
import tempfile
import time
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import ViTImageProcessor, default_data_collator

from hf_sharp_unlearn import CropFlip, ImagesInMemory
from hf_sharp_unlearn.benchmarks.parts.images import image_and_label
from hf_sharp_unlearn.benchmarks.parts.networks import Classifier
from hf_sharp_unlearn.benchmarks.parts.options import parser_of, positive
from hf_sharp_unlearn.benchmarks.parts.rows import quantiles, save, surroundings
from hf_sharp_unlearn.data import Processed, Slot, StreamDataset, cached_images
from hf_sharp_unlearn.runtime import progress_bar


def generated(count: int, size: int) -> Any:
    """PNG files of smooth noise, as a table."""
    import datasets

    draw, encoded = np.random.default_rng(0), []
    for _ in range(count):
        small = Image.fromarray(draw.integers(256, size=(8, 8, 3), dtype=np.uint8))
        small.resize((size, size), Image.Resampling.BICUBIC).save(file := io.BytesIO(), "PNG")
        encoded.append({"bytes": file.getvalue(), "path": None})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict({"image": encoded, "label": [i % 100 for i in range(count)]}, features)


def read(path: str, count: int) -> Any:
    """The first pictures of a parquet file, in the columns image and label."""
    import datasets

    found = datasets.load_dataset("parquet", data_files=path, split="train")
    image, label = image_and_label(found)
    kept = found.select_columns([image, label]).select(range(min(count, len(found))))
    new = {old: name for old, name in ((image, "image"), (label, "label")) if old != name}
    return kept.rename_columns(new)


def ways_of(table: Any, processor: ViTImageProcessor, cache: str) -> dict[str, Any]:
    """{way: what a trainer is given}. cache: a folder; a cached table keeps its pictures beside its own files."""
    import datasets

    table.save_to_disk(cache)
    memory = ImagesInMemory.from_dataset(table, processor)
    return {
        "process": table.with_transform(Processed(processor, "image", "label")),
        "disk": cached_images(datasets.load_from_disk(cache), processor, "image", "label"),
        "disk_crop": cached_images(datasets.load_from_disk(cache), processor, "image", "label", CropFlip()),
        "memory": memory,
        "memory_crop": memory.with_augmentation(CropFlip()),
    }


def load_seconds(data: Any, batches: list[list[Slot]]) -> float:
    """In which the batches are fetched and collated."""
    streams = StreamDataset({"retain": data}, 0)
    start = time.perf_counter()
    for slots in batches:
        default_data_collator([sample for _, sample in streams.__getitems__(slots)])
    return time.perf_counter() - start


def step_seconds(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: dict, steps: int) -> float:
    """Of NegGrad+ steps on two halves of a batch."""
    half = len(inputs["labels"]) // 2
    start = time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        for part, weight in ((slice(0, half), 0.97), (slice(half, None), -0.03)):
            (weight * model(**{key: value[part] for key, value in inputs.items()})["loss"]).backward()
        optimizer.step()
    return time.perf_counter() - start


def measure(table: Any, options: argparse.Namespace) -> list[dict[str, float]]:
    """{way: pictures per second} a round."""
    processor = ViTImageProcessor(size={"height": options.size, "width": options.size})
    rounds = []
    with tempfile.TemporaryDirectory() as cache:
        ways = ways_of(table, processor, cache)
        model = Classifier(100, cifar_stem=options.size <= 64).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        inputs = default_data_collator([ways["memory"][i] for i in range(min(options.batch, len(table)))])
        for number in progress_bar(range(options.rounds + 1), desc="rounds"):
            order = torch.randperm(len(table), generator=torch.Generator().manual_seed(number)).tolist()
            slots = [Slot("retain", index, number, place) for place, index in enumerate(order)]
            batches = [slots[low : low + options.batch] for low in range(0, len(slots), options.batch)]
            found = {way: len(table) / load_seconds(data, batches) for way, data in ways.items()}
            seconds = step_seconds(model, optimizer, inputs, options.steps)
            rounds.append({**found, "step": options.steps * len(inputs["labels"]) / seconds})
    return rounds[1:]  # the first is a warm-up


def main(argv: list[str] | None = None) -> None:
    parser = parser_of(__doc__, rounds=5)
    parser.add_argument("--data", help="parquet file with pictures; default: generated ones")
    parser.add_argument("--size", type=positive, default=32, help="pixels a side, of pictures and of model")
    parser.add_argument("--images", type=positive, default=2048, help="pictures")
    parser.add_argument("--batch", type=positive, default=128, help="pictures a batch")
    parser.add_argument("--steps", type=positive, default=4, help="of the model, a round")
    options = parser.parse_args(argv)
    table = read(options.data, options.images) if options.data else generated(options.images, options.size)
    rounds, rows = measure(table, options), []
    for way in rounds[0]:
        low, middle, high = (round(value) for value in quantiles([r[way] for r in rounds]))
        ratio = round(quantiles([r[way] / r["step"] for r in rounds])[1], 2)
        rows.append(
            {
                "way": way,
                "size": options.size,
                "pictures": len(table),
                "batch": options.batch,
                "data": os.path.basename(options.data) if options.data else "generated",
                "pictures_per_second_20": low,
                "pictures_per_second_50": middle,
                "pictures_per_second_80": high,
                "to_step_50": ratio,
                "rounds": options.rounds,
                **surroundings(torch.device("cpu")),
            }
        )
        print(f"{way:>12}  {middle:>8,} pictures/s ({low:,} - {high:,}), {ratio:,} times the model's")
    save(rows, options.output_dir, "loading.csv")


if __name__ == "__main__":
    main()
