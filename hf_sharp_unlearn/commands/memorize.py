"""`sharp-unlearn memorize`: memorization scores, and forget sets by them."""

import argparse
import os
from typing import Any

import numpy as np

from ..analysis import (
    MemorizationProxies,
    TrainerFit,
    estimate_memorization,
    forget_sets_by_score,
    load_scores,
    rank_correlations,
)
from ..figures import new_figure
from ..sources import FromConfig, collator_for, fingerprint, load_data
from .options import MODEL, columns_of, command, data_group, device_of, refuse_finished, run_group


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = command(
        commands,
        shared,
        "memorize",
        "estimate memorization scores with many small models, and choose forget sets by them",
        "Train many models on random subsets of a training set (Feldman and Zhang 2020) and write each sample's "
        "memorization score with its standard error. A killed run goes on where it stopped. With --scores: take scores "
        "from a file and only choose forget sets.",
    )
    data = data_group(parser)
    data.add_argument("--train", help="the training set")
    data.add_argument("--scores", help=".npy, .npz, .parquet or .csv file to use instead of an estimate")
    data.add_argument("--scores-key", help="array or column in it")
    training = parser.add_argument_group("training")
    training.add_argument("--model", help=f"{MODEL}: its config is used, the weights are fresh")
    training.add_argument("--models", type=int, default=200, help="number of models")
    training.add_argument("--ratio", type=float, default=0.7, help="share of the samples in a subset")
    training.add_argument("--epochs", type=float, default=20, help="epochs of each training")
    training.add_argument("--learning-rate", type=float, default=1e-3, help="with a cosine schedule")
    training.add_argument("--optim", default="adamw_torch", help="optimizer, as in TrainingArguments")
    training.add_argument("--processes", type=int, default=1, help="models trained at the same time")
    training.add_argument("--no-proxies", action="store_true", help="leave out the run that compares cheap proxies")
    choice = parser.add_argument_group("forget sets")
    choice.add_argument("--forget-size", type=int, help="write forget_high, forget_mid and forget_low.npy of this size")
    choice.add_argument("--middle", default="0.5", help="of the scores, for forget_mid: a number, or median")
    run_group(parser, "memorization")


def run(options: argparse.Namespace) -> None:
    if (options.scores is None) == (options.train is None) or (options.train and not options.model):
        raise ValueError("Give either --scores FILE, or --train DATA with --model MODEL.")
    if options.scores:
        if not options.forget_size:
            raise ValueError("--scores without --forget-size: there is nothing to do.")
        scores = load_scores(options.scores, options.scores_key)
        refuse_finished(options, "forget_high.npy")
        _write_forget_sets(scores, options)
        return
    refuse_finished(options, "memorization.npz")
    data = load_data(options.train, options.model, **columns_of(options))
    if options.forget_size is not None and not 1 <= options.forget_size <= len(data):
        raise ValueError(
            f"--forget-size {options.forget_size}: must lie between 1 and {len(data)}, the samples there are."
        )
    _middle(options)
    collator = collator_for(data, options.model)
    arguments = {
        "num_train_epochs": options.epochs,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": "cosine",
        "optim": options.optim,
        "per_device_train_batch_size": options.batch_size,
        "per_device_eval_batch_size": options.batch_size,
        "use_cpu": device_of(options).type == "cpu",
        "remove_unused_columns": False,
    }
    fit = TrainerFit(FromConfig(options.model), data, arguments, collator)
    found = estimate_memorization(
        fit,
        len(data),
        models=options.models,
        ratio=options.ratio,
        output_dir=os.path.join(options.output_dir, "models"),
        processes=options.processes,
        seed=options.seed,
        settings={
            "model": options.model,
            "data": fingerprint(options.train, data),
            **columns_of(options),
            **{name: value for name, value in arguments.items() if name != "use_cpu"},
        },
    )
    os.makedirs(options.output_dir, exist_ok=True)
    _draw_scores(found.scores, options.models, os.path.join(options.output_dir, "memorization.png"))
    error, unknown = np.sqrt(np.nanmean(found.standard_errors**2)), int(np.isnan(found.scores).sum())
    print(f"{len(data)} samples, {options.models} models, standard error {error:.3f} (root mean square)")
    if unknown:
        print(f"{unknown} samples have no score: they were in all subsets or in none. Train more models.")
    if not options.no_proxies:
        watch = MemorizationProxies(data, collator=collator, batch_size=options.batch_size)
        TrainerFit(FromConfig(options.model), data, arguments, collator, (watch,)).train(
            np.arange(len(data)), options.seed
        )
        proxies = watch.scores()
        np.savez(os.path.join(options.output_dir, "proxies.npz"), **proxies)
        for name, rho in sorted(rank_correlations(found.scores, proxies).items(), key=lambda item: -item[1]):
            print(f"rank correlation with {name:<20} {rho:+.3f}")
    found.save(os.path.join(options.output_dir, "memorization.npz"))  # says that it is finished
    print(f"written: {options.output_dir}")
    if options.forget_size:
        _write_forget_sets(found.scores, options)


def _middle(options: argparse.Namespace) -> float | str:
    try:
        return options.middle if options.middle == "median" else float(options.middle)
    except ValueError:
        raise ValueError(f'--middle {options.middle}: must be a number or "median".') from None


def _write_forget_sets(scores: np.ndarray, options: argparse.Namespace) -> None:
    sets = forget_sets_by_score(scores, options.forget_size, middle=_middle(options), seed=options.seed)
    os.makedirs(options.output_dir, exist_ok=True)
    for name, rows in sets.items():
        np.save(path := os.path.join(options.output_dir, f"forget_{name}.npy"), rows)
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
