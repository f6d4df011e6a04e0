"""`sharp-unlearn unlearn`: a model and its data in, an unlearned model with card and report out."""

import contextlib
import hashlib
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from transformers import set_seed

from ..arguments import UnlearningArguments
from ..data import (
    CropFlip,
    check_classes_fit,
    collator_for,
    evaluation_sets,
    fingerprint,
    forget_rows,
    is_hub_id,
    load_model,
    model_fingerprint,
    preparation_of,
    prepare,
    processing_class_of,
    read_table,
    split_forget,
)
from ..report import Prepared
from ..run import needed
from ..runtime import write_text
from ..sharing import PushError, training_arguments
from ..trainer import UnlearningTrainer
from .chosen_rows import chosen_line, usable
from .dry_run import rehearse, write_nothing
from .evaluate import Measurements
from .folders import claim, letting_go
from .method_options import MethodOptions
from .options import DATA, MODEL, Columns, option, refuse_finished, required
from .parsing import UsageError, parse
from .resuming import checkpoint_of

DONE = "all_results.json"
SKIPPED = "_skipped_rows.json"
DEFAULTS = {"output_dir": "unlearned", "save_strategy": "epoch", "save_total_limit": 1}
AUGMENTATION = {"none": None, "flip": CropFlip(0), "crop-flip": CropFlip()}


@dataclass
class Model:
    _argument_group_name = "model"

    model: str = required(f"the model that must forget: {MODEL}")
    reference: str | None = option("a model retrained without the forget set: the report compares with it")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = option(
        "of the weights in training; float32, because narrower ones swallow small steps; auto: as they were saved",
        "float32",
    )
    allow_new_head: bool = option(
        "go on where the files of --model lack the weights of its head, or have them in another size: the head is then "
        "drawn anew, from --seed. Without it such a model is refused",
        False,
    )


@dataclass
class Data:
    _argument_group_name = "data"

    train: str | None = option(f"the training data, of which a part is to be forgotten: {DATA}")
    forget_column: str | None = option("column of true and false; true rows are forgotten")
    forget_indices: list[str] = option(
        "row numbers, counted from 0, or a file with them: text with one a line, .csv, .json, .jsonl, .npy, .npz or "
        ".parquet",
        [],
    )
    forget_filter: list[str] = option(
        "conditions that forgotten rows fulfil, all of them, e.g. 'label == cat' 'score > 0.9'; signs are == != < <= > "
        ">= and in; numbers, dates (2024-01-31) or words, in quotes to be taken letter by letter",
        [],
    )
    forget: str | None = option("the forget set as data of its own, instead of --train")
    retain: str | None = option("the retain set as data of its own")
    test: str | None = option("samples that no model has seen, for the evaluation")
    images: Literal["auto", "memory", "disk", "process"] = option(
        "pictures are decoded once into memory (8 bits a value), once into a cache on disk, or each time (process); "
        "auto: memory up to 1 GiB, then disk",
        "auto",
    )
    augmentation: Literal[tuple(AUGMENTATION)] = option("of training images; crop: by up to 4 pixels", "none")
    skip_bad: bool = option(
        "leave out rows with a picture that cannot be opened, no text or no label, and list them in "
        f"{SKIPPED}; never rows that are to be forgotten. Without it they are refused",
        False,
    )


@dataclass
class Results:
    _argument_group_name = "results"

    overwrite: bool = option("do a finished run again, from the beginning", False)
    report: bool = option("make the unlearning report, and put it on the card", True)
    dry_run: bool = option(
        "only say what would be done: samples, classes, method, steps and seconds, from two steps on a model that is "
        "not kept; nothing is written to the output folder",
        False,
    )


@letting_go()
def main(argv: Sequence[str]) -> None:
    model, data, columns, method, args, results, measure = parse(
        "unlearn",
        "Make a model forget a part of its training data, and write it to --output-dir with its card and the report. "
        "The forget set is named by a column, by row numbers or by a filter. An interrupted run goes on from its last "
        "whole checkpoint (one an epoch, --save_strategy). Runs under accelerate launch -m hf_sharp_unlearn and "
        "torchrun -m hf_sharp_unlearn too.",
        (Model, Data, Columns, MethodOptions, UnlearningArguments, Results, Measurements),
        argv,
        DEFAULTS,
    )
    _check_folders(model, args.output_dir)
    chosen = method.build()
    if not results.dry_run:
        claim(args.output_dir)
    refuse_finished(args.output_dir, DONE, results.overwrite)
    if model.allow_new_head:
        set_seed(args.seed)
    loaded = load_model(model.model, model.dtype, model.allow_new_head)
    with args.main_process_first(desc="data"):
        sets, indices, prints, skipped = _sets(model, data, columns, args)
        options = {"model": model.model, "weights": model_fingerprint(model.model), "dtype": model.dtype,
                   "data": prints, "columns": columns.as_arguments(), "augmentation": data.augmentation,
                   "method": repr(chosen), "arguments": training_arguments(args)}  # fmt: skip
        beside = _reference_sets(model, data, columns, args) if results.report and model.reference else None
        files = needed(chosen, args.save_only_model, args.world_size)
        checkpoint = None if results.dry_run else checkpoint_of(args, results.overwrite, options, files, DONE)
    if results.dry_run:
        folder = args.output_dir
        write_nothing(args)
    elif skipped and args.process_index == 0:
        write_text(os.path.join(args.output_dir, SKIPPED), json.dumps(skipped, indent=1))
    args.forget_selection = args.forget_selection or _selection(data)
    first = sets["forget"]
    trainer = UnlearningTrainer(
        loaded,
        args,
        collator_for(first, model.model),
        eval_dataset=sets.pop("test", None),
        processing_class=processing_class_of(first, model.model),
        method=chosen,
        forget_dataset=sets["forget"],
        retain_dataset=sets["retain"],
        forget_indices=indices,
    )
    if results.dry_run:
        return rehearse(trainer, folder)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(_internal_call=True)  # first: whatever is raised from here on, the model is there
    metrics, failures = {}, []
    with _told_in_the_end(failures, "evaluation"):
        metrics = trainer.evaluate()
    if results.report:
        with _told_in_the_end(failures, "report"):
            _report(trainer, model, measure, beside)
    trainer.create_model_card(dataset_tags=[name for name in map(is_hub_id, _specs(data)) if name])
    trainer.save_metrics("all", metrics, combined=True)
    if args.push_to_hub and not failures:
        try:
            trainer.push_to_hub()
        except PushError as error:
            raise PushError(f"{error} (sharp-unlearn push {args.output_dir} --repo OWNER/NAME does it)") from error
    if trainer.is_world_process_zero():
        _say(trainer, metrics)
    if args.world_size > 1:  # torn down together: a process that ends while another still talks to it may abort
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.end_training()
    if failures:
        pushed = ", and sharp-unlearn push uploads it: it was not pushed" if args.push_to_hub else ""
        raise RuntimeError(
            f"The unlearned model is in {args.output_dir}, with its card, but {'; '.join(failures)}. sharp-unlearn "
            f"evaluate --model {args.output_dir} makes the report{pushed}."
        )


@contextlib.contextmanager
def _told_in_the_end(failures: list[str], what: str) -> Iterator[None]:
    """An error of what comes after the run must not lose the run."""
    try:
        yield
    except Exception as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        failures.append(f"its {what} failed: {type(error).__name__}: {error}")


def _check_folders(model: Model, output_dir: str) -> None:
    """Raise ValueError if the results would be written over a model that is still needed."""
    if not output_dir:
        raise UsageError("--output_dir is empty: name a folder.")
    out = os.path.realpath(output_dir)
    for name, path in (("model", model.model), ("reference", model.reference)):
        if path and os.path.isdir(path) and os.path.commonpath([out, os.path.realpath(path)]) == out:
            raise ValueError(f"--output_dir {output_dir} holds --{name} {path}, which would be lost: name another one.")


def _sets(
    model: Model, data: Data, columns: Columns, args: UnlearningArguments, labels_of: str | None = None
) -> tuple[dict[str, Any], Any, dict[str, str], dict[str, dict[int, str]]]:
    """Forget, retain and test set, with labels in the numbers of `labels_of`; the rows of the first in the training
    data, if it is one; fingerprints of all that is trained on; rows that were left out, and why."""
    augmentation = AUGMENTATION[data.augmentation]
    settings = {**columns.as_arguments(), "images": data.images, "device": args.device}
    named = bool(data.forget_column or data.forget_indices or data.forget_filter)
    if (data.train is None) == (data.forget is None) or data.train and data.retain or data.forget and named:
        raise UsageError(
            "Give --train with one of --forget-column, --forget-indices and --forget-filter, or --forget with --retain."
        )
    tables = {name: read_table(spec) for name in ("train", "forget", "retain", "test") if (spec := getattr(data, name))}
    indices, prints = None, {name: fingerprint(getattr(data, name), tables[name]) for name in tables if name != "test"}
    if data.train:  # chosen before pictures are decoded: a wrong choice should not cost that
        indices = forget_rows(
            tables["train"],
            column=data.forget_column,
            indices=data.forget_indices,
            conditions=data.forget_filter,
            spec=data.train,
        )
        prints["rows"] = hashlib.sha256(indices.tobytes()).hexdigest()
    first = args.process_index == 0 and labels_of is None  # what is said is said once
    if first:
        print(chosen_line(indices, data.train or data.forget, tables["train" if data.train else "forget"]), flush=True)
    places, skipped = indices, {}
    if data.skip_bad:
        specs = {name: getattr(data, name) for name in tables}
        tables, places, skipped = usable(tables, specs, indices, model.model, columns, first)
        prints["skipped"] = hashlib.sha256(json.dumps(skipped).encode()).hexdigest()
    ready = {
        name: prepare(
            table,
            getattr(data, name),
            model.model,
            augmentation=None if name == "test" else augmentation,
            labels_of=labels_of,
            **settings,
        )
        for name, table in tables.items()
    }
    if data.train:
        forget, retain = split_forget(ready.pop("train"), places)
        ready |= {"forget": forget, "retain": retain}
    return {"retain": None, **ready}, indices, prints, skipped


def _reference_sets(
    model: Model, data: Data, columns: Columns, args: UnlearningArguments
) -> tuple[dict[str, Any], Any] | None:
    """The evaluation's sets and collator, prepared for the reference; None where the model's serve it too.

    Raises ValueError for a reference whose classes are others, before any work."""
    check_classes_fit(model.model, model.reference, f"--reference {model.reference}")
    table = read_table(data.train or data.forget)
    if preparation_of(table, model.model) == preparation_of(table, model.reference):
        return None
    sets, *_ = _sets(
        replace(model, model=model.reference), replace(data, images="process", augmentation="none"), columns, args,
        model.model,
    )  # fmt: skip
    seed = args.seed if args.data_seed is None else args.data_seed
    splits = evaluation_sets(sets["forget"], sets["retain"], sets.get("test"), args.eval_retain_samples, seed)
    return splits, collator_for(sets["forget"], model.reference)


def _specs(data: Data) -> list[str]:
    return [spec for spec in (data.train, data.forget, data.retain) if spec]


def _selection(data: Data) -> str:
    """How the forget set was chosen, without what was looked for: that may be personal."""
    if data.forget_column:
        return f"rows marked in a column, {data.forget_column}"
    if data.forget_filter:
        return "rows for which a condition on their columns holds"
    return "a list of rows" if data.forget_indices else "a data set of its own"


def _report(trainer: UnlearningTrainer, model: Model, measure: Measurements, beside: tuple | None) -> None:
    first = trainer.is_world_process_zero()
    others = {
        name: load_model(source).to(trainer.args.device) if first and source else None
        for name, source in (
            ("reference", model.reference),
            ("original", None if model.allow_new_head else model.model),
        )
    }
    if beside is not None and others["reference"] is not None:
        others["reference"] = Prepared(others["reference"], *beside)
    trainer.evaluate_unlearning(
        **others,
        relearning=measure.relearning(trainer.model, trainer.forget_dataset),
        svc_samples=measure.svc_samples,
        feature_layer=measure.feature_layer,
    )


def _say(trainer: UnlearningTrainer, metrics: dict[str, float]) -> None:
    splits = list(trainer.eval_dataset)
    print(f"{'split':<8}  {'samples':>8}  {'loss':>8}  {'accuracy':>8}")
    for split in splits:
        values = [metrics.get(f"eval_{split}_{key}") for key in ("samples", "loss", "accuracy")]
        cells = ["" if v is None else f"{v:,}" if isinstance(v, int) else f"{v:.4f}" for v in values]
        print(f"{split:<8}  " + "  ".join(f"{cell:>8}" for cell in cells))
    if trainer.report is not None:
        tow = trainer.report["tug_of_war"]
        print(f"Tug-of-War: {getattr(tow, 'reason', None) or f'{tow.value:.3f}'}")
        for warned in trainer.report.settings["warnings"]:
            print(f"Warning: {warned}")
    print(f"written: {trainer.args.output_dir} (model, README.md, {DONE})", flush=True)
