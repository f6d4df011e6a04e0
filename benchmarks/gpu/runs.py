"""A short training run that is timed or watched, step by step."""

import contextlib
import statistics
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback

from hf_sharp_unlearn.benchmarks.gpu.record import Part
from hf_sharp_unlearn.benchmarks.gpu.timing import kernels_of
from hf_sharp_unlearn.benchmarks.parts import foreach_backend
from hf_sharp_unlearn.benchmarks.parts.trainers import quiet, trainer_of
from hf_sharp_unlearn.kernels import metered


class Pool(Dataset):
    """`count` samples out of a few that lie in memory, on the device or not: the loader does next to nothing."""

    def __init__(self, columns: Mapping[str, Tensor | list[int]], count: int):
        self._columns, self._count = columns, count
        self._size = len(next(iter(columns.values())))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict:
        return {name: values[index % self._size] for name, values in self._columns.items()}


class StepTimes(TrainerCallback):
    """Milliseconds from the end of a step to the end of the next, where the device is: nothing here waits for it."""

    def __init__(self, gpu: bool):
        self._gpu, self._marks = gpu, []

    def on_step_end(self, args, state, control, **kwargs):
        if self._gpu:
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record()
        else:
            self._marks.append(time.perf_counter())

    def milliseconds(self) -> list[float]:
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        if not self._gpu:
            return [1e3 * (b - a) for a, b in pairs]
        torch.cuda.synchronize()
        return [a.elapsed_time(b) for a, b in pairs]


class Watch(TrainerCallback):
    """Between the ends of two steps: waits for the device, by file and line, and what the meter has counted."""

    def __init__(self, meter, said: list):
        self._meter, self._said, self.marks = meter, said, []

    def on_step_end(self, args, state, control, **kwargs):
        meter = self._meter
        self.marks.append((len(self._said), meter.launches, meter.rebuilds, meter.rewrites))

    def last_step(self) -> tuple[list[str], tuple[int, int, int]]:
        (low, *before), (high, *after) = self.marks[-2:]
        places = [f"{_short(w.filename)}:{w.lineno}" for w in self._said[low:high] if "synchroniz" in str(w.message)]
        return places, tuple(b - a for a, b in zip(before, after, strict=True))


class Profiled(TrainerCallback):
    """The GPU's work in the last `steps` steps of a run of `total`."""

    def __init__(self, steps: int, total: int):
        self._first, self._last, self.steps = total - steps + 1, total, steps
        # acc_events: else torch 2.11 warns that a second cycle would clear the events of the first
        self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True)
        self.kernels: dict[str, tuple[int, float]] = {}

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self._first:
            torch.cuda.synchronize()
            self._profile.start()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self._last:
            torch.cuda.synchronize()
            self._profile.stop()
            self.kernels = kernels_of(self._profile)


def train(
    part: Part,
    variant: str,
    network: nn.Module,
    data: tuple[Dataset, Dataset],
    batch: int,
    steps: int,
    callbacks: tuple[TrainerCallback, ...],
    **arguments,
) -> None:
    """Run `steps` steps. data: retain and forget. arguments: further TrainingArguments."""
    with tempfile.TemporaryDirectory() as folder, foreach_backend.registered():
        common = quiet(folder, steps, use_cpu=not part.gpu, **arguments)
        trainer = trainer_of(variant, network, *data, batch, common)
        trainer.remove_callback(PrinterCallback)
        for callback in callbacks:
            trainer.add_callback(callback)
        trainer.train()


def timed(part: Part, variant: str, network: nn.Module, data, batch: int, warm: int, steps: int, **arguments) -> dict:
    """Median time of a step after `warm` ones, and the most memory that tensors took."""
    times = StepTimes(part.gpu)
    if part.gpu:
        torch.cuda.reset_peak_memory_stats()
    train(part, variant, network, data, batch, warm + steps, (times,), **arguments)
    found = times.milliseconds()[warm - 1 :]
    values = {"step_ms": statistics.median(found), "from": min(found), "to": max(found)}
    if part.gpu:
        values["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return values


def watched(part: Part, variant: str, network: nn.Module, data, batch: int, **arguments) -> dict:
    """How often the host waits in the twelfth step (torch tells; it misses copies from pageable memory), how many
    sweeps are launched, and tables made or written again."""
    with metered() as meter, _sync_warnings(part.gpu) as said:
        watch = Watch(meter, said)
        train(part, variant, network, data, batch, 3 if part.quick else 12, (watch,), **arguments)
    places, (launches, rebuilds, rewrites) = watch.last_step()
    if not part.gpu:
        return {"sweep_launches": launches, "rebuilds": rebuilds, "rewrites": rewrites}
    if variant == "sharp_minmax" and not launches:
        raise AssertionError("no sweep was launched: the run took another backend than the Triton kernels")
    where = ", ".join(f"{count} x {place}" for place, count in Counter(places).most_common())
    return {"waits": len(places), "sweep_launches": launches, "rebuilds": rebuilds, "rewrites": rewrites,
            "waits_at": where}  # fmt: skip


def _short(path: str) -> str:
    """Where in its package a file lies."""
    for mark in ("site-packages/", "dist-packages/", "/path/"):
        path = path.rsplit(mark, 1)[-1]
    return path


@contextlib.contextmanager
def _sync_warnings(gpu: bool) -> Iterator[list]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if gpu:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield said
        finally:
            if gpu:
                torch.cuda.set_sync_debug_mode("default")
