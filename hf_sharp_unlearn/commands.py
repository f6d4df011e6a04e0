"""The commands `evaluate`, `memorize` and `landscape`: their options, and what they run and write."""

import argparse
import json
import os
from typing import Any

import numpy as np
import torch

from .analysis import (
    MemorizationProxies,
    Relearning,
    TrainerFit,
    estimate_memorization,
    forget_sets_by_score,
    load_scores,
    rank_correlations,
)
from .analysis.landscape_comparison import compare_landscapes, draw_landscapes, landscape_numbers
from .figures import new_figure
from .report import evaluate_unlearning
from .sharpness import SAM
from .sources import FromConfig, collator_for, fingerprint, load_data, load_model

MODEL = "a folder that save_pretrained wrote, or a Hub id"
DATA = (
    "a .parquet, .csv, .json or .jsonl file, a saved data set, an image folder or a Hub id; :NAME at the end is a split"
)


def add_evaluate(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = _command(
        commands,
        shared,
        "evaluate",
        "measure how well a model has forgotten; write report.json, report.md and plots",
        "Run each split through each model once and write every metric that the inputs allow. What cannot be computed "
        "is said to be absent, with the reason.",
    )
    models = parser.add_argument_group("models", MODEL)
    models.add_argument("--model", required=True, help="the unlearned model")
    models.add_argument("--reference", help="a model that was retrained without the forget set")
    models.add_argument("--original", help="the model before unlearning")
    for name, text in (
        ("shadow", "saw neither forget nor test samples: LiRA and RMIA"),
        ("unlearned", "made like --model with other seeds: KLoM, U-LiRA, forgetting quality"),
        ("retrained", "made like --reference with other seeds: the same"),
    ):
        models.add_argument(f"--{name}-models", nargs="*", default=[], metavar="MODEL", help=f"models that {text}")
    data = _data_group(parser)
    data.add_argument("--forget", required=True, help="the forget set")
    data.add_argument("--retain", help="the retain set, or a part of it")
    data.add_argument("--test", help="samples that no model has seen")
    measure = parser.add_argument_group("measurements")
    measure.add_argument("--svc-samples", type=int, default=5000, help="SVC attacks: most samples a side; 0: none")
    measure.add_argument("--relearn-steps", type=int, default=0, help="relearning attack: optimizer steps; 0: none")
    measure.add_argument("--relearn-samples", type=int, default=16, help="forget samples it trains on")
    measure.add_argument("--relearn-lr", type=float, default=1e-4, help="its learning rate (AdamW)")
    measure.add_argument("--feature-layer", help="module whose output is the feature; default: the penultimate layer")
    _run_group(parser, "unlearning_report")


def run_evaluate(options: argparse.Namespace) -> None:
    _refuse_finished(options, "report.json")
    relearning = None
    if options.relearn_steps:
        steps = options.relearn_steps
        relearning = Relearning(options.relearn_samples, steps, max(1, steps // 10), options.relearn_lr)
    sets = {name: _data(options, getattr(options, name)) for name in ("forget", "retain", "test")}
    single = {name: _model(options, getattr(options, name)) for name in ("model", "reference", "original")}
    many = {
        f"{name}_models": (_model(options, path) for path in getattr(options, f"{name}_models"))
        for name in ("shadow", "unlearned", "retrained")
    }
    report = evaluate_unlearning(
        single.pop("model"),
        **sets,
        **single,
        **many,
        relearning=relearning,
        svc_samples=options.svc_samples,
        batch_size=options.batch_size,
        collator=collator_for(sets["forget"], options.model),
        feature_layer=options.feature_layer,
        seed=options.seed,
    )
    paths = report.save(options.output_dir)
    print(report.to_markdown())
    print("written: " + ", ".join(paths))


def add_memorize(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = _command(
        commands,
        shared,
        "memorize",
        "estimate memorization scores with many small models, and choose forget sets by them",
        "Train many models on random subsets of a training set (Feldman and Zhang 2020) and write each sample's "
        "memorization score with its standard error. A killed run goes on where it stopped. With --scores: take scores "
        "from a file and only choose forget sets.",
    )
    data = _data_group(parser)
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
    _run_group(parser, "memorization")


def run_memorize(options: argparse.Namespace) -> None:
    if (options.scores is None) == (options.train is None) or (options.train and not options.model):
        raise ValueError("Give either --scores FILE, or --train DATA with --model MODEL.")
    if options.scores:
        if not options.forget_size:
            raise ValueError("--scores without --forget-size: there is nothing to do.")
        scores = load_scores(options.scores, options.scores_key)
        forget_sets_by_score(scores, options.forget_size, middle=_middle(options))  # refused before anything is written
        _refuse_finished(options, "forget_high.npy")
        os.makedirs(options.output_dir, exist_ok=True)
        _write_forget_sets(scores, options)
        return
    _refuse_finished(options, "memorization.npz")
    data = load_data(options.train, options.model, **_columns(options))
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
        "use_cpu": _device(options).type == "cpu",
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
            **_columns(options),
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


def add_landscape(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = _command(
        commands,
        shared,
        "landscape",
        "draw the loss around one or more checkpoints, with sharpness and top Hessian eigenvalue",
        "Filter-normalised loss surfaces and slices (Li et al. 2018) of each model on each set, in one figure, and "
        "landscape.json with the numbers.",
    )
    models = parser.add_argument_group("models", MODEL)
    models.add_argument("--models", nargs="+", required=True, metavar="MODEL", help="checkpoints to compare")
    models.add_argument("--names", nargs="*", help="how they are called in the figure; default: the folders' names")
    data = _data_group(parser)
    data.add_argument("--forget", required=True, help="the forget set")
    data.add_argument("--test", help="samples that no model has seen")
    grid = parser.add_argument_group("landscape")
    grid.add_argument("--points", type=int, default=15, help="grid points per dimension (odd)")
    grid.add_argument("--reach", type=float, default=1.0, help="how far from the weights, in units of the filters")
    grid.add_argument("--samples", type=int, default=512, help="samples of each set behind every loss")
    grid.add_argument("--rho", type=float, default=0.1, help="radius of the SAM sharpness")
    _run_group(parser, "landscape")


def run_landscape(options: argparse.Namespace) -> None:
    _refuse_finished(options, "landscape.json")
    names = options.names or [os.path.basename(os.path.normpath(path)) for path in options.models]
    if len(names) != len(options.models) or len(set(names)) < len(names):
        raise ValueError(f"--names {names}: give each of the {len(options.models)} models a name of its own.")
    options.model = options.models[0]
    sets = {name: _data(options, getattr(options, name)) for name in ("forget", "test") if getattr(options, name)}
    found = compare_landscapes(
        {name: _model(options, path) for name, path in zip(names, options.models, strict=True)},
        sets,
        points=options.points,
        reach=options.reach,
        samples=options.samples,
        sharpness=SAM(rho=options.rho),
        batch_size=options.batch_size,
        seed=options.seed,
        collator=collator_for(next(iter(sets.values())), options.model),
    )
    os.makedirs(options.output_dir, exist_ok=True)
    with open(path := os.path.join(options.output_dir, "landscape.json"), "w") as file:
        json.dump(numbers := landscape_numbers(found), file, allow_nan=False)
    paths = draw_landscapes(found, options.output_dir)
    keys = ("centre", "rise", "variability", "slope", "sharpness", "top_eigenvalue", "eigenvector_residual")
    for name, splits in numbers.items():
        for split, values in splits.items():
            print(f"{name}, {split} set: " + ", ".join(f"{key} {_shown(values[key])}" for key in keys))
    print("written: " + ", ".join([*paths, path]))


def _command(
    commands: Any, shared: argparse.ArgumentParser, name: str, short: str, long: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        parents=[shared],
        help=short,
        description=long,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


def _data_group(parser: argparse.ArgumentParser) -> Any:
    data = parser.add_argument_group("data", DATA)
    data.add_argument("--label", help="column of the label; default: labels, label or fine_label")
    data.add_argument("--text", default="text", help="column of the text")
    data.add_argument("--max-length", type=int, default=512, help="of a text, in tokens")
    return data


def _run_group(parser: argparse.ArgumentParser, folder: str) -> None:
    run = parser.add_argument_group("run")
    run.add_argument("--output-dir", default=folder, help="where the results are written")
    run.add_argument("--overwrite", action="store_true", help="replace results that are there already")
    run.add_argument("--batch-size", type=int, default=128, help="samples a batch")
    run.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, mps, ...")


def _columns(options: argparse.Namespace) -> dict[str, Any]:
    return {"label": options.label, "text": options.text, "max_length": options.max_length}


def _data(options: argparse.Namespace, spec: str | None) -> Any:
    return None if spec is None else load_data(spec, options.model, **_columns(options))


def _model(options: argparse.Namespace, name: str | None) -> Any:
    return None if name is None else load_model(name).to(_device(options))


def _device(options: argparse.Namespace) -> torch.device:
    if options.device != "auto":
        return torch.device(options.device)
    return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


def _refuse_finished(options: argparse.Namespace, name: str) -> None:
    path = os.path.join(options.output_dir, name)
    if os.path.exists(path) and not options.overwrite:
        raise ValueError(f"{path} is there already: pass --overwrite to replace it, or another --output-dir.")


def _middle(options: argparse.Namespace) -> float | str:
    try:
        return options.middle if options.middle == "median" else float(options.middle)
    except ValueError:
        raise ValueError(f'--middle {options.middle}: must be a number or "median".') from None


def _write_forget_sets(scores: np.ndarray, options: argparse.Namespace) -> None:
    sets = forget_sets_by_score(scores, options.forget_size, middle=_middle(options), seed=options.seed)
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


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"
