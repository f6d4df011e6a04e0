"""One run of the comparison, in a worker process: train an original or a reference, or unlearn and measure."""

import functools
import itertools
import logging
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForImageClassification,
    PrinterCallback,
    TimmWrapperConfig,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_sharp_unlearn import UnlearningArguments, UnlearningTrainer, tug_of_war
from hf_sharp_unlearn.benchmarks.comparison.configs import CONFIGS
from hf_sharp_unlearn.benchmarks.comparison.plan import TRAINED, Job
from hf_sharp_unlearn.benchmarks.comparison.released_loop import Batch, released_sharp_minmax
from hf_sharp_unlearn.benchmarks.comparison.setups import SETUPS, SHARE, Setup
from hf_sharp_unlearn.benchmarks.comparison.tasks import Task, load_task
from hf_sharp_unlearn.benchmarks.parts.images import Images
from hf_sharp_unlearn.runtime import derive_seed

SPLITS = ("retain", "forget", "test")

task_of = functools.cache(load_task)


@dataclass(frozen=True)
class Settings:
    """What all runs of a command have in common. config: key of SETUPS. data, scores: see `load_task`. work_dir: where
    originals and references are kept. batch: another size. max_steps: of each training, to try the command out."""

    config: str
    data: str | None
    scores: str | None
    work_dir: str
    batch: int | None = None
    max_steps: int | None = None

    @property
    def setup(self) -> Setup:
        return SETUPS[self.config]

    @property
    def task(self) -> Task:
        return task_of(self.data, self.scores)

    def weights_path(self, job: Job) -> str:
        """Where the weights of an original or a reference are kept."""
        selection = job.selection if job.name == "retrained" else "all"
        name = f"{self.config}-{self.task.name}-{job.name}-{selection}-{job.seed}.safetensors"
        return os.path.join(self.work_dir, name)

    def arguments(self, seed: int) -> dict:
        """Of TrainingArguments, for every training."""
        loads_apart = self.setup.augment and device_of().type == "cuda"
        return {
            "output_dir": os.path.join(self.work_dir, "runs", str(os.getpid())),
            "per_device_train_batch_size": self.batch or self.setup.batch,
            "seed": seed,
            "report_to": "none",
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "dataloader_num_workers": 4 if loads_apart else 0,
            "max_steps": self.max_steps or -1,
        }


def device_of() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_model(network: str, task: Task) -> nn.Module:
    """resnet18-narrow: a timm ResNet-18 with a quarter of the channels. resnet50: with a 3 x 3 stem and no pooling."""
    _, channels, size, _ = task.train.pixels.shape
    narrow = {"channels": [16, 32, 64, 128], "stem_width": 8} if network == "resnet18-narrow" else {}
    config = TimmWrapperConfig(
        architecture=network.partition("-")[0],
        num_labels=task.classes,
        model_args={"in_chans": channels, **narrow},
        pretrained_cfg={"input_size": [channels, size, size], "mean": [0.5], "std": [0.5], "crop_pct": 1.0},
    )
    model = AutoModelForImageClassification.from_config(config)
    if not narrow:
        model.timm_model.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        model.timm_model.maxpool = nn.Identity()
    return model.to(memory_format=torch.channels_last)


def run_job(job: Job, settings: Settings) -> dict:
    """Returns the row's own fields: what was run, accuracies, Tug-of-War, seconds."""
    quiet()
    device, setup, task = device_of(), settings.setup, settings.task
    if device.type == "cpu":
        torch.set_num_threads(1)
    set_seed(job.seed)
    model = build_model(setup.network, task)
    sets = split(task, job.selection or "hard", job.seed, setup.augment)
    start = seconds(device)
    if job.name in TRAINED:
        train(model, job, sets, settings)
    else:
        model.load_state_dict(load_file(settings.weights_path(Job("original", job.seed, ""))))
        model = model.to(device).to(memory_format=torch.channels_last)
        if job.point is not None:
            unlearn(model, job, sets, settings)
    spent = seconds(device) - start
    if job.name in TRAINED:
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, settings.weights_path(job))
    rate, strength = job.point or ("", "")
    row = {
        "seed": job.seed,
        "selection": job.selection,
        "name": job.name,
        "rate": rate,
        "strength": strength,
        "epochs": setup.training["num_train_epochs"] if job.name in TRAINED else setup.epochs,
        "cpu_seconds": spent,
        **accuracies(model.to(device), sets),
    }
    if job.name == "original":
        return row
    ours = {name: row[name] for name in SPLITS}
    theirs = ours if job.name == "retrained" else reference_accuracies(job.seed, job.selection, settings)
    return {**row, "tow": tug_of_war(ours, theirs), "tow_signed": tug_of_war(ours, theirs, signed=True)}


def train(model: nn.Module, job: Job, sets: dict[str, Images], settings: Settings) -> None:
    setup, whole = settings.setup, settings.task.train
    data = Images(whole.pixels, whole.labels, setup.augment) if job.name == "original" else sets["retain"]
    arguments = TrainingArguments(**settings.arguments(job.seed), **setup.training)
    trainer = Trainer(model, arguments, train_dataset=data)
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def unlearn(model: nn.Module, job: Job, sets: dict[str, Images], settings: Settings) -> None:
    setup, config, (rate, strength) = settings.setup, CONFIGS[job.name], job.point
    forget_batch = min(setup.forget_batch, settings.batch or setup.forget_batch)
    if config.make is None:
        unlearn_as_released(model, job, sets, settings, forget_batch)
        return
    arguments = UnlearningArguments(
        **settings.arguments(job.seed),
        num_train_epochs=setup.epochs,
        learning_rate=rate,
        forget_batch_size=forget_batch,
    )
    trainer = UnlearningTrainer(
        model,
        arguments,
        method=config.make(rate, strength),
        forget_dataset=sets["forget"],
        retain_dataset=sets["retain"],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def unlearn_as_released(
    model: nn.Module, job: Job, sets: dict[str, Images], settings: Settings, forget_batch: int
) -> None:
    (rate, alpha), device = job.point, next(model.parameters()).device
    size, epochs = settings.batch or settings.setup.batch, settings.setup.epochs
    retain = [batches(sets["retain"], size, (job.seed, epoch), device) for epoch in range(epochs)]
    if settings.max_steps:
        retain = [itertools.islice(epoch, settings.max_steps) for epoch in retain[:1]]
    forget = list(batches(sets["forget"], forget_batch, (job.seed, -1), device))
    released_sharp_minmax(
        model, retain.__getitem__, forget, alpha=alpha, fraction=0.3, learning_rate=rate, epochs=len(retain)
    )


def batches(data: Images, size: int, seed: tuple[int, int], device: torch.device) -> Iterator[Batch]:
    """Shuffled batches of a whole set."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(derive_seed(*seed)))
    for rows in order.split(size):
        samples = [data[int(row)] for row in rows]
        pixels = torch.stack([sample["pixel_values"] for sample in samples]).to(device)
        yield {"pixel_values": pixels, "labels": torch.tensor([s["labels"] for s in samples], device=device)}


def split(task: Task, selection: str, seed: int, augment: bool) -> dict[str, Images]:
    """{split: images}; only what is trained on is augmented."""
    forget = task.forget_rows(selection, SHARE, seed)
    retain = np.setdiff1d(np.arange(len(task.train)), forget)
    return {
        "retain": task.train.select(retain, augment),
        "forget": task.train.select(forget, augment),
        "test": task.test,
    }


@torch.no_grad()
def accuracies(model: nn.Module, sets: dict[str, Images]) -> dict[str, float]:
    """By split; without augmentation, in eval mode."""
    model.eval()
    device = next(model.parameters()).device
    found = {}
    for name, data in sets.items():
        right = 0
        for pixels, labels in zip(data.pixels.split(500), data.labels.split(500), strict=True):
            right += int((model(pixel_values=pixels.to(device)).logits.argmax(-1).cpu() == labels).sum())
        found[name] = right / len(data)
    return found


@functools.cache
def reference_accuracies(seed: int, selection: str, settings: Settings) -> dict[str, float]:
    """Of the reference, measured once a process."""
    model = build_model(settings.setup.network, settings.task)
    model.load_state_dict(load_file(settings.weights_path(Job("retrained", seed, selection))))
    return accuracies(model.to(device_of()), split(settings.task, selection, seed, augment=False))


def seconds(device: torch.device) -> float:
    """Of this process on a CPU, so that a busy machine does not count; of the clock on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def quiet() -> None:
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("hf_sharp_unlearn").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
