"""`sharp-unlearn unlearn --dry_run`: what the run would do, and about how long it would take; nothing is written."""

import atexit
import math
import shutil
import tempfile
import time
from collections import Counter
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState

from ..arguments import UnlearningArguments
from ..data import transform_of
from ..trainer import UnlearningTrainer

STEPS = 2  # the second one is timed: much is set up in the first


class _Timed(TrainerCallback):
    """Ends the run after `STEPS` steps, and knows how many it would have had."""

    def __init__(self):
        self.steps, self.moments = 0, []

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self.moments.append(time.perf_counter())

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.device.type != "cpu":
            torch.accelerator.synchronize()
        self.steps = state.max_steps
        self.moments.append(time.perf_counter())
        control.should_training_stop = len(self.moments) > STEPS

    @property
    def seconds(self) -> float:
        return self.moments[-1] - self.moments[-2] if len(self.moments) > 1 else math.nan


def write_nothing(args: UnlearningArguments) -> None:
    """Make the arguments those of a run that saves, logs, evaluates and publishes nothing; what a method has to keep in
    files meanwhile goes to a folder that is removed."""
    args.output_dir = tempfile.mkdtemp(prefix="dry-run-")
    atexit.register(shutil.rmtree, args.output_dir, ignore_errors=True)
    args.save_strategy = args.eval_strategy = args.logging_strategy = "no"
    args.report_to, args.disable_tqdm = [], True
    args.push_to_hub = args.load_best_model_at_end = args.eval_on_start = False


def rehearse(trainer: UnlearningTrainer, output_dir: str) -> None:
    """Train for two steps and print what was seen; the weights that they moved end with the process."""
    timed, args, model = _Timed(), trainer.args, trainer.model
    trainer.pop_callback(PrinterCallback)
    trainer.add_callback(timed)
    lines = {"model": f"{type(model).__name__}, {sum(p.numel() for p in model.parameters()):,} parameters, "
                      f"{next(model.parameters()).dtype}, {args.device}".replace("torch.", "")}  # fmt: skip
    for name in ("forget", "retain", "test"):
        data = trainer.eval_dataset.get(name) if name == "test" else getattr(trainer, f"{name}_dataset")
        if data is not None:
            lines[name] = f"{len(data):,} samples{_classes(data)}"
    sample = trainer.forget_dataset[0] if trainer.forget_dataset is not None else trainer.retain_dataset[0]
    lines["a sample"] = ", ".join(f"{name} {_shape(value)}" for name, value in sample.items())
    lines["method"] = repr(trainer.method)
    trainer.train()
    shutil.rmtree(args.output_dir, ignore_errors=True)
    lines["batches"] = (
        f"{args.train_batch_size} samples a process, {args.world_size} process(es), "
        f"{args.gradient_accumulation_steps} accumulated"
    )
    lines["steps"] = f"{timed.steps:,}"
    if args.max_steps <= 0 and timed.steps > 1:
        lines["steps"] += f" in {args.num_train_epochs:g} epoch(s)"
    lines["time"] = (
        f"about {timed.steps * timed.seconds:,.0f} s for the steps ({timed.seconds:.3f} s each), without the report"
    )
    for place, overlap in enumerate(getattr(trainer, "overlaps", ())):
        lines[f"shared {place + 1}"] = overlap.describe()
    if trainer.is_world_process_zero():
        width = max(map(len, lines))
        print("\n".join(f"{name:<{width}}  {text}" for name, text in lines.items()))
        print(f"dry run: nothing was written to {output_dir}", flush=True)


def _classes(data: Any) -> str:
    """How often each class comes, where labels are at hand and few."""
    if hasattr(data, "labels") and hasattr(data, "rows"):
        labels = data.labels[data.rows.to(data.labels.device)].tolist()
    else:
        column = getattr(transform_of(data), "label_column", "labels")
        if column not in getattr(data, "column_names", ()):
            return ""
        labels = list(data.with_format(None)[column][:])
    if not all(isinstance(label, int) for label in labels):
        return ""
    counts = sorted(Counter(labels).items())
    shown = ", ".join(f"{label}: {count:,}" for label, count in counts[:10])
    return f" of {len(counts)} class(es) ({shown}{', ...' if len(counts) > 10 else ''})"


def _shape(value: Any) -> str:
    return str(tuple(value.shape) if hasattr(value, "shape") else (len(value),) if isinstance(value, list) else ())
