"""All runs of a comparison, stage by stage, in worker processes.

Every finished run is a row in a CSV file; a run that is there is not repeated, so a command goes on where it was
stopped.
"""

import argparse
import csv
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

from hf_sharp_unlearn.benchmarks.comparison import runs
from hf_sharp_unlearn.benchmarks.comparison.plan import STAGES, Job, jobs_of, key_of, winners_of
from hf_sharp_unlearn.benchmarks.comparison.setups import SETUPS
from hf_sharp_unlearn.benchmarks.parts.options import positive
from hf_sharp_unlearn.benchmarks.parts.rows import append, surroundings
from hf_sharp_unlearn.runtime import progress_bar

COLUMNS = ("config", "data", "selection", "seed", "name", "rate", "strength", "epochs", "retain", "forget", "test",
           "tow", "tow_signed", "cpu_seconds", "device", "date", "torch", "transformers", "commit")  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", choices=sorted(SETUPS), default="mini", help="network and training recipe")
    parser.add_argument("--data", default=None, help="folder with train*.parquet and test*.parquet, or a Hub id; "
                        "default: scikit-learn's digits, 5 %% of them with a wrong label")  # fmt: skip
    parser.add_argument("--scores", default=None, help=".npy, one score a training row, low = hard (C-scores)")
    parser.add_argument("--seeds", type=positive, default=3, help="reported seeds 0, 1, ...")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each; 0: in this process")
    parser.add_argument("--minutes", type=float, default=90.0, help="start no further run after so many")
    parser.add_argument("--max-steps", type=positive, default=None, help="of each training, to try the command out")
    parser.add_argument("--batch", type=positive, default=None, help="another batch size")
    parser.add_argument("--work-dir", default="out/vision", help="where trained originals and references are kept")


def settings_of(options: argparse.Namespace) -> runs.Settings:
    return runs.Settings(
        options.config, options.data, options.scores, options.work_dir, options.batch, options.max_steps
    )


def complete(path: str, names: Sequence[str], options: argparse.Namespace) -> list[dict] | None:
    """Run what the file `path` lacks of the configurations `names`.

    Returns all rows of this setup and data, or None where the time was up before.
    """
    settings = settings_of(options)
    os.makedirs(settings.work_dir, exist_ok=True)
    deadline = time.monotonic() + 60 * options.minutes

    def missing(stage: str) -> list[Job]:
        rows = read_rows(path, settings)
        done = {key_of(row) for row in rows}
        winners = winners_of(rows, names) if stage == "report" else None
        return [job for job in jobs_of(stage, names, options.seeds, winners) if job.key not in done]

    for stage in STAGES:
        todo = missing(stage)
        if stage == "train" and (todo or missing("tune") or missing("report")):  # in this order: report needs tune
            # What a row was made with may lie on another machine: train it again, its row stays.
            jobs = jobs_of(stage, names, options.seeds)
            todo = [job for job in jobs if job in todo or not os.path.exists(settings.weights_path(job))]
        _work(todo, settings, path, options.workers, deadline, stage)
        if missing(stage):
            print(f"stopped after {options.minutes:g} minutes; the same command goes on from here", flush=True)
            return None
    return read_rows(path, settings)


def read_rows(path: str, settings: runs.Settings) -> list[dict]:
    """The rows of this setup and data."""
    if not os.path.exists(path):
        return []
    with open(path, newline="") as file:
        mine = (settings.config, settings.task.name)
        return [row for row in csv.DictReader(file) if (row["config"], row["data"]) == mine]


def _work(jobs: list[Job], settings: runs.Settings, path: str, workers: int, deadline: float, title: str) -> None:
    """Run jobs; write a row as soon as a job is done."""
    if not jobs:
        return
    device = runs.device_of()
    done = {key_of(row) for row in read_rows(path, settings)}

    def write(found: dict) -> None:
        if key_of(found) not in done:
            row = {"config": settings.config, "data": settings.task.name, **surroundings(device), **found}
            append(path, [{column: row.get(column, "") for column in COLUMNS}])

    with progress_bar(total=len(jobs), desc=title) as bar:
        if workers < 1:
            for job in jobs:
                if time.monotonic() < deadline:
                    write(runs.run_job(job, settings))
                    bar.update()
        else:
            workers = min(workers, 1 if device.type == "cuda" else len(jobs))
            _work_apart(jobs, settings, workers, deadline, lambda row: (write(row), bar.update()))


def _work_apart(
    jobs: list[Job], settings: runs.Settings, workers: int, deadline: float, finish: Callable[[dict], object]
) -> None:
    """In processes of their own; what waits is dropped when the time is up or one of them fails."""
    waiting, pending = list(jobs), set[Future]()
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            while pending or (waiting and time.monotonic() < deadline):
                while waiting and len(pending) < workers and time.monotonic() < deadline:
                    pending.add(pool.submit(runs.run_job, waiting.pop(0), settings))
                finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    finish(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
