"""Memorization scores: how much a model's answer to a training sample depends on having trained on it.

mem(i) = P[h(x_i) = y_i : h trained with i] - P[h(x_i) = y_i : h trained without i]      in [-1, 1]; high is memorized

Feldman & Zhang, NeurIPS 2020 (arXiv 2008.03703). Many small models are trained, each on a random subset of `ratio` of
the samples; the estimate is the difference of the shares of right answers among models with and without i. Its standard
error is sqrt(p (1 - p) / (n - 1) + q (1 - q) / (m - 1)) for shares p of n and q of m models, and shrinks as
1 / sqrt(models). It is 0 where all models agree, which few models may do by chance: there, look at the 95 % interval
(Newcombe 1998, method 10, from Wilson's intervals of the two shares). The authors used 2000 to 4000 models, ratio 0.7.
"""

import concurrent.futures
import json
import multiprocessing
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..metrics import wilson
from ..runtime import derive_seed, progress_bar, write_text, written_whole

Fit = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Memorization:
    """scores, standard_errors, low, high: (N,), the last two the ends of the 95 % interval; nan for a sample that no
    model, or every model, was trained on (standard errors: fewer than two models with it or without it).
    trained_with, trained_without: (N,) numbers of models. ratio: share of the samples in a subset."""

    scores: np.ndarray
    standard_errors: np.ndarray
    low: np.ndarray
    high: np.ndarray
    trained_with: np.ndarray
    trained_without: np.ndarray
    ratio: float

    def save(self, path: str) -> None:
        """Write an .npz file with one array per field; `load_scores(path, "scores")` reads the scores."""
        _write(path, **vars(self))


def estimate_memorization(
    fit: Fit,
    samples: int,
    *,
    models: int = 200,
    ratio: float = 0.7,
    output_dir: str,
    processes: int = 1,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Memorization:
    """Train `models` models on random subsets and estimate the memorization of every sample.

    fit(rows, seed): trains a model on these rows and returns (samples,) numbers in [0, 1]: how right it is on every
        sample, in the data set's order (see `fitting.TrainerFit`). With processes > 1 it must be picklable.
    output_dir: gets one file a model; a run that was killed goes on from them, and one with more models adds to them.
    settings: what else makes the models what they are (plain numbers and strings); files of other settings are refused.
    processes: models trained at the same time, each with its share of the processor's threads.

    Which rows a model is trained on, and its seed, depend on `seed` and its number only. Raises ValueError for values
    out of range, an output_dir of another estimate, and a `fit` that returns something else.
    """
    if samples < 2 or models < 2 or processes < 1 or not 0 < ratio < 1:
        raise ValueError(
            f"samples={samples}, models={models}, ratio={ratio}, processes={processes}: need at least 2 samples and 2 "
            "models, a ratio between 0 and 1 and at least one process."
        )
    size = round(ratio * samples)
    if not 0 < size < samples:
        raise ValueError(f"ratio={ratio} of {samples} samples is {size}: a subset needs some samples, but not all.")
    _check_folder(output_dir, {"samples": samples, "ratio": ratio, "seed": seed, **(settings or {})})
    todo = [model for model in range(models) if not os.path.exists(_path(output_dir, model))]
    with progress_bar(total=models, initial=models - len(todo), desc="memorization", disable=not progress) as bar:
        if processes == 1:
            for model in todo:
                _run(fit, samples, size, seed, model, output_dir, None)
                bar.update()
        else:
            threads = max(1, torch.get_num_threads() // processes)
            # A forked process would inherit the locks of torch's thread pool.
            context = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(min(processes, max(len(todo), 1)), context) as pool:
                jobs = [pool.submit(_run, fit, samples, size, seed, model, output_dir, threads) for model in todo]
                try:
                    for job in concurrent.futures.as_completed(jobs):
                        job.result()
                        bar.update()
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
    return combine([_path(output_dir, model) for model in range(models)], ratio)


def subset_rows(samples: int, size: int, seed: int, model: int) -> np.ndarray:
    """The rows that a model is trained on, rising."""
    draw = np.random.default_rng(derive_seed(seed, "memorization", model))
    return np.sort(draw.permutation(samples)[:size])


def combine(paths: list[str], ratio: float) -> Memorization:
    """The estimate from the files of single models."""
    counts = right = 0
    for path in paths:
        with np.load(path) as run:
            correct = run["correct"].astype(np.float64)
            member = np.zeros(len(correct), bool)
            member[run["rows"]] = True
        both = np.stack([member, ~member])
        counts = counts + both
        right = right + both * correct
    counts, right = np.asarray(counts, np.int64), np.asarray(right)
    n = np.where(counts > 0, counts, np.nan)
    p = right / n
    variance = p * (1 - p) / np.where(counts > 1, counts - 1, np.nan)
    scores = p[0] - p[1]
    ends = wilson(p, n)
    below, above = p - ends[0], ends[1] - p
    low, high = scores - np.hypot(below[0], above[1]), scores + np.hypot(above[0], below[1])
    return Memorization(scores, np.sqrt(variance.sum(0)), low, high, counts[0], counts[1], ratio)


def _run(fit: Fit, samples: int, size: int, seed: int, model: int, output_dir: str, threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    rows = subset_rows(samples, size, seed, model)
    correct = np.asarray(fit(rows, derive_seed(seed, "memorization model", model) % (1 << 32)), np.float64)
    if correct.shape != (samples,) or not ((correct >= 0) & (correct <= 1)).all():
        raise ValueError(
            f"fit returned {correct.shape}, from {correct.min() if correct.size else None} to "
            f"{correct.max() if correct.size else None}: need ({samples},) numbers in [0, 1], one for every sample."
        )
    _write(_path(output_dir, model), rows=rows, correct=correct.astype(np.float32))


def _path(output_dir: str, model: int) -> str:
    return os.path.join(output_dir, f"model-{model:05d}.npz")


def _write(path: str, **arrays: object) -> None:
    """All of the file or nothing, whenever the process is killed."""
    with written_whole(path) as unfinished, open(unfinished, "wb") as file:
        np.savez_compressed(file, **arrays)


def _check_folder(output_dir: str, settings: dict) -> None:
    os.makedirs(output_dir, exist_ok=True)
    path = os.path.join(output_dir, "settings.json")
    if os.path.exists(path):
        with open(path) as file:
            before = json.load(file)
        if before != settings:
            raise ValueError(f"output_dir={output_dir!r} holds models of {before}, not of {settings}: use another one.")
        return
    write_text(path, json.dumps(settings))
