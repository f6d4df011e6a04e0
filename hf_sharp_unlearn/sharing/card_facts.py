"""What a run knows of itself, for the card: where model and data come from, what was asked for, with what result."""

import dataclasses
import functools
import math
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from huggingface_hub import EvalResult
from transformers.modelcard import TASK_MAPPING, TrainingSummary

from ..arguments import UnlearningArguments
from ..data import hub_id
from ..methods import Method
from ..metrics import Absent, Estimate
from ..report import UnlearningReport
from ..step import ASAM, SAM, Partition

# Arguments that say where and how a run is watched, saved or shared, not what it computes.
_HOUSEKEEPING = tuple(
    """
    output_ logging_ log_ report_to run_name project trackio_ save_ hub_ push_ eval_ do_ disable_tqdm dataloader_
    use_cpu resume_ restore_ local_ ddp_ debug include_ load_best metric_for greater_is per_device_eval batch_eval
    skip_ torch_empty ignore_data_skip forget_selection retrain_seconds remove_unused enable_jit prediction_
    label_names average_tokens deepspeed accelerator_config parallelism
    """.split()
)
_ALWAYS = ("learning_rate", "optim", "optim_args", "lr_scheduler_type", "num_train_epochs", "max_steps",
           "per_device_train_batch_size", "forget_batch_size", "gradient_accumulation_steps", "max_grad_norm",
           "weight_decay", "seed", "data_seed", "kernel_backend")  # fmt: skip
_TASK_METRICS = {"accuracy": "Accuracy", "loss": "Loss"}


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a card is made from.

    splits: names of the evaluation sets. log_history, steps: of the trainer's state. report: the latest one, if there
    is one. resumed: the run went on from a checkpoint. overlaps: what the sets share, in words. hub_name: the model's
    name. hub_model_id: its repository, if known.
    """

    model: Any
    method: Method
    args: UnlearningArguments
    forget_dataset: Any
    retain_dataset: Any
    splits: Sequence[str]
    log_history: Sequence[dict]
    steps: int
    partition: Partition | None
    report: UnlearningReport | None
    resumed: bool
    overlaps: Sequence[str]
    hub_name: str
    hub_model_id: str | None
    unvisited: int = 0  # forget samples that no step has used
    warnings: Sequence[str] = ()  # on the latest evaluation, for a card without a report


def inner_model(model: Any) -> Any:
    """The model itself: under an adapter, its base."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def hub_name_of(model: Any) -> str | None:
    """The id on the Hub that a model was loaded from; None for a local folder or a fresh model."""
    return hub_id(getattr(getattr(model, "config", None), "_name_or_path", None))


def task_of(model: Any) -> str | None:
    """The Hub's name of the model's task."""
    return next((task for task, names in TASK_MAPPING.items() if type(model).__name__ in names.values()), None) or (
        "image-classification" if type(model).__name__.endswith("ForImageClassification") else None
    )


@functools.lru_cache
def license_of(name: str | None) -> str | None:
    """The license of a model on the Hub, if the Hub may be asked and knows it."""
    return None if name is None else TrainingSummary(model_name=name, finetuned_from=name).license


def known_sources(*datasets: Any) -> list[str]:
    """Ids on the Hub that data sets were loaded from, as far as `datasets` has noted them."""
    found: list[str] = []
    for data in datasets:
        for url in getattr(getattr(data, "info", None), "download_checksums", None) or ():
            match = re.match(r"hf://datasets/([^/@]+/[^/@]+)@", url)
            if match and match[1] not in found:
                found.append(match[1])
    return found


def training_arguments(args: UnlearningArguments) -> list[tuple[str, str]]:
    """What a run was asked to compute: the usual arguments, and every other one that is not at its default."""
    found = {}
    for field in dataclasses.fields(UnlearningArguments):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        value = getattr(args, field.name, default)
        same = value == default or value is None or value is False and default is None
        if field.name in _ALWAYS and value is not None or not same and not field.name.startswith(_HOUSEKEEPING):
            found[field.name] = shown(value)
    found["processes"] = str(args.world_size)
    return [(name, found[name]) for name in (*_ALWAYS, *(n for n in found if n not in _ALWAYS)) if name in found]


def last_evaluation(run: RunFacts) -> dict[str, dict[str, float]]:
    """split -> metric -> value of the latest `evaluate`."""
    found: dict[str, dict[str, float]] = {}
    for entry in run.log_history:
        for key, value in entry.items():
            for split in run.splits:
                prefix = f"eval_{split}_"
                if key.startswith(prefix) and isinstance(value, int | float) and math.isfinite(value):
                    found.setdefault(split, {})[key.removeprefix(prefix)] = value
    timing = ("runtime", "per_second", "model_preparation_time")
    return {
        split: {key: value for key, value in values.items() if not key.endswith(timing)}
        for split, values in found.items()
    }


def hardware(args: Any) -> str:
    """Kind and number of devices, without the machine's name."""
    if args.device.type == "cuda":
        return f"{args.world_size} x {torch.cuda.get_device_name(args.device)}"
    name = platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            found = re.search(r"^model name\s*:\s*(.+)$", file.read(), re.M)
        name = found[1].strip() if found else name
    where = name if args.device.type == "cpu" else f"{args.device.type} of {name}"
    return f"{where}, {args.world_size} process(es) of {torch.get_num_threads()} thread(s)"


def eval_results(
    run: RunFacts, task: str | None, tags: list[str], names: list[str], dataset_args: Any
) -> list[EvalResult]:
    """For the model-index: accuracies, Tug-of-War and the loss attack of the report, or the latest evaluation."""
    numbers: dict[tuple[str, str], float] = {}  # (metric, split) -> value
    if run.report is not None:
        for key, values in run.report.metrics.items():
            metric, _, split = key.partition("/")
            value = values.get("unlearned", Absent(""))
            if isinstance(value, Estimate) and math.isfinite(value.value):
                if metric == "accuracy" or key in ("tug_of_war", "mia_loss/auc"):
                    numbers[metric, split] = value.value
    else:
        for split, values in last_evaluation(run).items():
            numbers |= {(metric, split): values[metric] for metric in _TASK_METRICS if metric in values}
    tag = next(iter(tags), "unknown")
    name = next(iter(names), None) or next(iter(tags), "not named")
    return [
        EvalResult(
            task_type=task or "other",
            dataset_type=tag,
            dataset_name=name,
            dataset_split=split if metric in _TASK_METRICS else None,
            dataset_args={"args": dataset_args} if dataset_args else None,
            metric_type=metric,
            metric_value=round(value, 6),
            metric_name=_metric_name(metric, split),
        )
        for (metric, split), value in numbers.items()
    ]


def _metric_name(metric: str, split: str) -> str:
    if metric in _TASK_METRICS:
        return f"{_TASK_METRICS[metric]} on the {split} set"
    return {"tug_of_war": "Tug-of-War", "mia_loss": "AUC of membership inference by loss"}[metric]


def cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def shown(value: Any) -> str:
    """A setting as text. Of what is no plain value only the kind: its repr might tell paths or data."""
    if isinstance(value, Enum):
        value = value.value
    if callable(value) and hasattr(value, "__qualname__"):
        return cell(f"{value.__module__}.{value.__qualname__}")
    if isinstance(value, dict):
        return cell({str(key): shown(entry) for key, entry in value.items()})
    if isinstance(value, list | tuple):
        return cell([shown(entry) for entry in value])
    plain = value is None or isinstance(value, bool | int | float | str | SAM | ASAM)
    return cell(value if plain else type(value).__name__)
