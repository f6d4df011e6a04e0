"""`sharp-unlearn memorize`: memorization scores, and forget sets by them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..analysis import (
    MemorizationProxies,
    TrainerFit,
    estimate_memorization,
    forget_sets_by_score,
    load_scores,
    new_figure,
    rank_correlations,
)
from ..data import FromConfig, collator_for, fingerprint, problem_of_source
from .folders import letting_go
from .options import DATA, MODEL, Columns, Run, option
from .parsing import UsageError, parse


@dataclass
class Data:
    _argument_group_name = "data"

    train: str | None = option(f"the training set: {DATA}")
    scores: str | None = option(".npy, .npz, .parquet or .csv file to use instead of an estimate")
    scores_key: str | None = option("array or column in it")


@dataclass
class Training:
    _argument_group_name = "training"

    model: str | None = option(f"{MODEL}: its config is used, the weights are fresh")
    models: int = option("number of models", 200)
    ratio: float = option("share of the samples in a subset", 0.7)
    epochs: float = option("epochs of each training", 20.0)
    learning_rate: float = option("with a cosine schedule", 1e-3)
    optim: str = option("optimizer, as in TrainingArguments", "adamw_torch")
    processes: int = option("models trained at the same time", 1)
    proxies: bool = option("make one more run that compares cheap proxies", True)


@dataclass
class Choice:
    _argument_group_name = "forget sets"

    forget_size: int | None = option("write forget_high, forget_mid and forget_low.npy of this size")
    middle: str = option("of the scores, for forget_mid: a number, or median", "0.5")


@letting_go()
def main(argv: Sequence[str]) -> None:
    source, columns, training, choice, run = parse(
        "memorize",
        "Train many models on random subsets of a training set (Feldman and Zhang 2020) and write each sample's "
        "memorization score with its standard error. A killed run goes on where it stopped. With --scores: take scores "
        "from a file and only choose forget sets.",
        (Data, Columns, Training, Choice, Run),
        argv,
    )
    if (source.scores is None) == (source.train is None) or (source.train and not training.model):
        raise UsageError("Give either --scores FILE, or --train DATA with --model MODEL.")
    if source.scores:
        if not choice.forget_size:
            raise UsageError("--scores without --forget-size: there is nothing to do.")
        scores = load_scores(source.scores, source.scores_key)
        run.start("memorization", "forget_high.npy")
        _write_forget_sets(scores, choice, run)
        return
    run.start("memorization", "memorization.npz")
    data = columns.load(source.train, training.model)
    if (problem := problem_of_source(training.model)) is not None:
        raise ValueError(
            f"--model {training.model} is a model of {problem}: memorization is measured by how often a sample's "
            "class is told, and it has none. Take a classifier or a language model."
        )
    if choice.forget_size is not None and not 1 <= choice.forget_size <= len(data):
        raise ValueError(
            f"--forget-size {choice.forget_size}: must lie between 1 and {len(data)}, the samples there are."
        )
    _middle(choice)
    collator = collator_for(data, training.model)
    arguments = {
        "num_train_epochs": training.epochs,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": "cosine",
        "optim": training.optim,
        "per_device_train_batch_size": run.batch_size,
        "per_device_eval_batch_size": run.batch_size,
        "use_cpu": run.on_device().type == "cpu",
        "remove_unused_columns": False,
    }
    fit = TrainerFit(FromConfig(training.model), data, arguments, collator)
    found = estimate_memorization(
        fit,
        len(data),
        models=training.models,
        ratio=training.ratio,
        output_dir=os.path.join(run.output_dir, "models"),
        processes=training.processes,
        seed=run.seed,
        settings={
            "model": training.model,
            "config": FromConfig(training.model).fingerprint,
            "data": fingerprint(source.train, data),
            **columns.as_arguments(),
            **{name: value for name, value in arguments.items() if name != "use_cpu"},
        },
    )
    os.makedirs(run.output_dir, exist_ok=True)
    _draw_scores(found.scores, training.models, os.path.join(run.output_dir, "memorization.png"))
    error, unknown = np.sqrt(np.nanmean(found.standard_errors**2)), int(np.isnan(found.scores).sum())
    print(f"{len(data)} samples, {training.models} models, standard error {error:.3f} (root mean square)")
    if unknown:
        print(f"{unknown} samples have no score: they were in all subsets or in none. Train more models.")
    if training.proxies:
        watch = MemorizationProxies(data, collator=collator, batch_size=run.batch_size)
        TrainerFit(FromConfig(training.model), data, arguments, collator, (watch,)).train(
            np.arange(len(data)), run.seed
        )
        proxies = watch.scores()
        np.savez(os.path.join(run.output_dir, "proxies.npz"), **proxies)
        for name, rho in sorted(rank_correlations(found.scores, proxies).items(), key=lambda item: -item[1]):
            print(f"rank correlation with {name:<20} {rho:+.3f}")
    found.save(os.path.join(run.output_dir, "memorization.npz"))  # says that it is finished
    print(f"written: {run.output_dir}")
    if choice.forget_size:
        _write_forget_sets(found.scores, choice, run)


def _middle(choice: Choice) -> float | str:
    try:
        return choice.middle if choice.middle == "median" else float(choice.middle)
    except ValueError:
        raise ValueError(f'--middle {choice.middle}: must be a number or "median".') from None


def _write_forget_sets(scores: np.ndarray, choice: Choice, run: Run) -> None:
    sets = forget_sets_by_score(scores, choice.forget_size, middle=_middle(choice), seed=run.seed)
    os.makedirs(run.output_dir, exist_ok=True)
    for name, rows in sets.items():
        np.save(path := os.path.join(run.output_dir, f"forget_{name}.npy"), rows)
        print(f"{path}: {len(rows)} rows, scores {scores[rows].min():.3f} to {scores[rows].max():.3f}")


def _draw_scores(scores: np.ndarray, models: int, path: str) -> None:
    figure = new_figure(5.6, 3.6)
    axis = figure.subplots()
    known = scores[~np.isnan(scores)]
    axis.hist(known, bins=np.linspace(min(-0.2, known.min()), 1, 31), color="#08306b", edgecolor="white")
    axis.set_yscale("log")
    axis.set_xlabel("memorization score")
    axis.set_ylabel("samples")
    axis.set_title(f"Memorization of {len(known)} samples, {models} models")
    axis.grid(axis="y", alpha=0.25)
    figure.savefig(path, dpi=110)
