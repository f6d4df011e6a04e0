"""One run of the comparison, in a worker process: train an original or a reference, or unlearn and measure."""

import functools
import itertools
import logging
import os
import time
import warnings

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
from hf_sharp_unlearn.benchmarks.comparison.released import released_sharp_minmax
from hf_sharp_unlearn.benchmarks.comparison.setups import SETUPS, SHARE
from hf_sharp_unlearn.benchmarks.parts.tasks import Images, Task, load_task
from hf_sharp_unlearn.runtime import derive_seed

task_of = functools.cache(load_task)


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


def run_job(job: dict, settings: dict) -> dict:
    """Returns the row's own fields: what was run, accuracies, Tug-of-War, seconds."""
    quiet()
    device, setup = device_of(), SETUPS[settings["config"]]
    if device.type == "cpu":
        torch.set_num_threads(1)
    task = task_of(settings["data"], settings["scores"])
    batch = settings["batch"] or setup.batch
    common = {
        "output_dir": os.path.join(settings["work_dir"], "runs", str(os.getpid())),
        "per_device_train_batch_size": batch,
        "seed": job["seed"],
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "dataloader_num_workers": 4 if setup.augment and device.type == "cuda" else 0,
        "max_steps": settings["max_steps"] or -1,
    }
    set_seed(job["seed"])
    model = build_model(setup.network, task)
    sets = split(task, job["selection"] or "hard", job["seed"], setup.augment)
    row = {"seed": job["seed"], "selection": job["selection"], "name": job["name"], "rate": "", "strength": ""}
    row["epochs"] = setup.training["num_train_epochs"] if job["name"] in ("original", "retrained") else setup.epochs
    start = seconds(device)
    if job["name"] in ("original", "retrained"):
        data = (
            Images(task.train.pixels, task.train.labels, setup.augment) if job["name"] == "original" else sets["retain"]
        )
        trainer = Trainer(model, TrainingArguments(**common, **setup.training), train_dataset=data)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        row["cpu_seconds"] = seconds(device) - start
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path_of(job, settings))
    else:
        model.load_state_dict(load_file(path_of({**job, "name": "original"}, settings)))
        model = model.to(device).to(memory_format=torch.channels_last)
        if "point" in job:
            unlearn(model, job, sets, common, setup, settings)
            row["rate"], row["strength"] = job["point"]
        row["cpu_seconds"] = seconds(device) - start
    row.update(accuracies(model.to(device), task, sets))
    if job["name"] == "original":
        return row
    target = row if job["name"] == "retrained" else reference(job, settings, task, sets)
    splits = ("retain", "forget", "test")
    ours, theirs = ({key: values[key] for key in splits} for values in (row, target))
    row["tow"], row["tow_signed"] = tug_of_war(ours, theirs), tug_of_war(ours, theirs, signed=True)
    return row


def unlearn(model: nn.Module, job: dict, sets: dict, common: dict, setup, settings: dict) -> None:
    config, (rate, strength) = CONFIGS[job["name"]], job["point"]
    forget_batch = min(setup.forget_batch, settings["batch"] or setup.forget_batch)
    if config.make is None:
        size, device = common["per_device_train_batch_size"], next(model.parameters()).device
        drawn = [batches(sets["retain"], size, (job["seed"], epoch), device) for epoch in range(setup.epochs)]
        if settings["max_steps"]:
            drawn = [itertools.islice(one, settings["max_steps"]) for one in drawn[:1]]
        forget = list(batches(sets["forget"], forget_batch, (job["seed"], -1), device))
        released_sharp_minmax(
            model, drawn.__getitem__, forget, alpha=strength, fraction=0.3, learning_rate=rate, epochs=len(drawn)
        )
        return
    trainer = UnlearningTrainer(
        model,
        UnlearningArguments(
            **common, num_train_epochs=setup.epochs, learning_rate=rate, forget_batch_size=forget_batch
        ),
        method=config.make(rate, strength),
        forget_dataset=sets["forget"],
        retain_dataset=sets["retain"],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def batches(data: Images, size: int, seed: tuple, device: torch.device):
    """Shuffled batches of a whole set."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(derive_seed(*seed)))
    for rows in order.split(size):
        samples = [data[int(row)] for row in rows]
        pixels = torch.stack([sample["pixel_values"] for sample in samples]).to(device)
        yield {"pixel_values": pixels, "labels": torch.tensor([s["labels"] for s in samples], device=device)}


def split(task: Task, selection: str, seed: int, augment: bool) -> dict[str, Images]:
    rows = task.forget_rows(selection, SHARE, seed)
    rest = [row for row in range(len(task.train)) if row not in set(rows.tolist())]
    return {"retain": task.train.select(rest, augment), "forget": task.train.select(rows, augment)}


@torch.no_grad()
def accuracies(model: nn.Module, task: Task, sets: dict[str, Images]) -> dict[str, float]:
    """Without augmentation, in eval mode."""
    model.eval()
    found = {}
    for name, data in {**sets, "test": task.test}.items():
        device = next(model.parameters()).device
        right = 0
        for pixels, labels in zip(data.pixels.split(500), data.labels.split(500), strict=True):
            right += int((model(pixel_values=pixels.to(device)).logits.argmax(-1).cpu() == labels).sum())
        found[name] = right / len(data)
    return found


def reference(job: dict, settings: dict, task: Task, sets: dict) -> dict[str, float]:
    """Accuracies of the reference, measured once a process."""
    path = path_of({**job, "name": "retrained"}, settings)
    if path not in _references:
        model = build_model(SETUPS[settings["config"]].network, task)
        model.load_state_dict(load_file(path))
        _references[path] = accuracies(model.to(device_of()), task, sets)
    return _references[path]


_references: dict[str, dict[str, float]] = {}


def path_of(job: dict, settings: dict) -> str:
    """Where the weights of an original or a reference are kept."""
    data = task_of(settings["data"], settings["scores"]).name
    selection = job["selection"] if job["name"] == "retrained" else "all"
    name = f"{settings['config']}-{data}-{job['name']}-{selection}-{job['seed']}.safetensors"
    return os.path.join(settings["work_dir"], name)


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
