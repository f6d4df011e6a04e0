"""How do the methods compare? Every one with every sharpness, on images, against a retrained model.

    python -m hf_sharp_unlearn.benchmarks.vision --config mini --data cifar100-mini --scores cifar100_cscores_train.npy
    python -m hf_sharp_unlearn.benchmarks.vision --config cifar100 --data uoft-cs/cifar100 --scores ...   one GPU

A seed's original model is trained on all training data, its reference on the retain set alone, with the same recipe.
Two forget sets of 6 %: the hardest by score, and random ones. Every configuration is tuned on seed 100 of the hard set,
by the absolute Tug-of-War, over its six grid points; seeds 0, 1, 2 of both sets are reported with what won there.

Every finished run is a row in the CSV file; a run that is there is not repeated, so the command goes on where it was
stopped. `--minutes` ends a slice. When all rows are there, tables and a plot are written beside them.
"""

import argparse
import contextlib
import csv
import multiprocessing
import os
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

from tqdm.auto import tqdm

from hf_sharp_unlearn.benchmarks.comparison import runs, tables
from hf_sharp_unlearn.benchmarks.comparison.configs import CONFIGS
from hf_sharp_unlearn.benchmarks.comparison.setups import FIELDS, SELECTIONS, SETUPS, TUNING_SEED
from hf_sharp_unlearn.benchmarks.parts.rows import positive, results_folder, surroundings


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", choices=sorted(SETUPS), default="mini", help="network and training recipe")
    parser.add_argument("--data", default=None, help="folder with train*.parquet and test*.parquet, or a Hub id; "
                        "default: scikit-learn's digits, 5 %% of them with a wrong label")  # fmt: skip
    parser.add_argument("--scores", default=None, help=".npy, one score a training row, low = hard (C-scores)")
    parser.add_argument("--seeds", type=positive, default=3, help="reported seeds 0, 1, ...")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each; 0: in this process")
    parser.add_argument("--minutes", type=float, default=90.0, help="start no further run after so many")
    parser.add_argument("--only", nargs="+", default=None, metavar="NAME", help="configurations; default: all")
    parser.add_argument("--max-steps", type=positive, default=None, help="of each training, to try the command out")
    parser.add_argument("--batch", type=positive, default=None, help="another batch size")
    parser.add_argument("--work-dir", default="out/vision", help="where trained originals and references are kept")
    parser.add_argument("--output-dir", default=None, help="folder of the results (benchmarks/results in a checkout)")


def jobs_of(stage: str, names: list[str], seeds: int, winners: dict) -> list[dict]:
    """The runs of a stage. winners: name -> grid point, for the stage "report"."""
    if stage == "train":
        pairs = [(TUNING_SEED, "hard"), *((seed, s) for seed in range(seeds) for s in SELECTIONS)]
        originals = [{"seed": seed, "selection": "", "name": "original"} for seed in (TUNING_SEED, *range(seeds))]
        return originals + [{"seed": seed, "selection": s, "name": "retrained"} for seed, s in pairs]
    if stage == "tune":
        return [
            {"seed": TUNING_SEED, "selection": "hard", "name": name, "point": point}
            for name in names
            for point in CONFIGS[name].grid
        ]
    nothing = [{"seed": seed, "selection": s, "name": "do nothing"} for seed in range(seeds) for s in SELECTIONS]
    return nothing + [
        {"seed": seed, "selection": selection, "name": name, "point": winners[name]}
        for name in names
        for selection in SELECTIONS
        for seed in range(seeds)
        if selection == "hard" or not CONFIGS[name].ablation
    ]


def key_of(row: dict) -> tuple:
    rate, strength = row.get("point") or (row.get("rate", ""), row.get("strength", ""))
    numbers = ["" if value in ("", None) else f"{float(value):g}" for value in (rate, strength)]
    return (row["name"], row["selection"], str(row["seed"]), *numbers)


def read_rows(path: str, config: str, data: str) -> list[dict]:
    if not os.path.exists(path):
        return []
    with open(path, newline="") as file:
        return [row for row in csv.DictReader(file) if (row["config"], row["data"]) == (config, data)]


def winners_of(rows: list[dict], names: list[str]) -> dict:
    """name -> the grid point with the highest absolute Tug-of-War on the tuning seed; the first one of equals."""
    best = {}
    for name in names:
        tuned = {key_of(row): float(row["tow"]) for row in rows if row["name"] == name}
        points = {p: tuned[key_of({"name": name, "selection": "hard", "seed": TUNING_SEED, "point": p})]
                  for p in CONFIGS[name].grid}  # fmt: skip
        best[name] = max(points, key=points.get)
    return best


def run(options: argparse.Namespace) -> bool:
    """Run what is missing. Returns True when every row is there and the tables are written."""
    results = results_folder(options.output_dir)
    os.makedirs(options.work_dir, exist_ok=True)
    unknown = sorted(set(options.only or ()) - set(CONFIGS))
    if unknown:
        raise ValueError(f"--only {unknown}: not a configuration. There are {sorted(CONFIGS)}.")
    names = list(options.only or CONFIGS)
    task = runs.task_of(options.data, options.scores)
    path = os.path.join(results, f"vision_{options.config}.csv")
    deadline = time.monotonic() + 60 * options.minutes

    def missing(stage: str) -> list[dict]:
        rows = read_rows(path, options.config, task.name)
        done = {key_of(row) for row in rows}
        winners = winners_of(rows, names) if stage == "report" else {}
        return [job for job in jobs_of(stage, names, options.seeds, winners) if key_of(job) not in done]

    for stage in ("train", "tune", "report"):
        todo = missing(stage)
        if stage == "train" and (todo or missing("tune") or missing("report")):  # in this order: report needs tune
            # What a row was made with may lie on another machine: train it again, its row stays.
            jobs = jobs_of(stage, names, options.seeds, {})
            todo += [job for job in jobs if job not in todo and not os.path.exists(runs.path_of(job, vars(options)))]
        for kind in ("original", "retrained") if stage == "train" else (None,):
            some = [job for job in todo if kind is None or job["name"] == kind]
            _work(some, vars(options), path, task.name, deadline, kind or stage)
        if missing(stage):
            print(f"stopped after {options.minutes:g} minutes; the same command goes on from here", flush=True)
            return False
    rows = read_rows(path, options.config, task.name)
    tables.write(rows, winners_of(rows, names), results, f"vision_{options.config}_{task.name}")
    return True


def _work(jobs: list[dict], settings: dict, path: str, data: str, deadline: float, title: str) -> None:
    """Run jobs in worker processes; write a row as soon as a job is done."""
    if not jobs:
        return
    device = runs.device_of()
    workers = min(settings["workers"], 1 if device.type == "cuda" else len(jobs))

    done = {key_of(row) for row in read_rows(path, settings["config"], data)}

    def write(row: dict) -> None:
        if key_of(row) not in done:
            _append(path, {"config": settings["config"], "data": data, **surroundings(device), **row})

    if workers < 1:
        for job in tqdm(jobs, desc=title):
            if time.monotonic() < deadline:
                write(runs.run_job(job, settings))
        return
    context = multiprocessing.get_context("spawn")
    pending: set[Future] = set()
    waiting = list(jobs)
    with ProcessPoolExecutor(workers, context) as pool, tqdm(total=len(jobs), desc=title) as bar:
        try:
            while pending or (waiting and time.monotonic() < deadline):
                while waiting and len(pending) < workers and time.monotonic() < deadline:
                    pending.add(pool.submit(runs.run_job, waiting.pop(0), settings))
                finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    write(future.result())
                    bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _append(path: str, row: dict) -> None:
    new = not os.path.exists(path)
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, extrasaction="ignore")
        if new:
            writer.writeheader()
        writer.writerow(row)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add_options(parser)
    with contextlib.suppress(KeyboardInterrupt):
        run(parser.parse_args())


if __name__ == "__main__":
    main()
