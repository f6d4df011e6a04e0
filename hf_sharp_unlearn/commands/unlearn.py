"""`sharp-unlearn unlearn`: a model and its data in, an unlearned model with card and report out."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import set_seed

from ..arguments import UnlearningArguments
from ..data import (
    CropFlip,
    collator_for,
    fingerprint,
    forget_rows,
    is_hub_id,
    load_model,
    model_fingerprint,
    prepare,
    processing_class_of,
    read_table,
    split_forget,
)
from ..run import needed
from ..sharing import PushError, training_arguments
from ..trainer import UnlearningTrainer
from .evaluate import Measurements
from .folders import claim, letting_go
from .method_options import MethodOptions
from .options import DATA, MODEL, Columns, option, refuse_finished, required
from .parsing import UsageError, parse
from .resuming import checkpoint_of

DONE = "all_results.json"
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
    forget_indices: list[str] = option("row numbers, or a file with them: .npy, .json, or text", [])
    forget_filter: list[str] = option(
        "conditions that forgotten rows fulfil, all of them, e.g. 'label == cat' 'score > 0.9'", []
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


@dataclass
class Results:
    _argument_group_name = "results"

    overwrite: bool = option("do a finished run again, from the beginning", False)
    report: bool = option("make the unlearning report, and put it on the card", True)


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
    claim(args.output_dir)
    refuse_finished(args.output_dir, DONE, results.overwrite)
    if model.allow_new_head:
        set_seed(args.seed)
    loaded = load_model(model.model, model.dtype, model.allow_new_head)
    with args.main_process_first(desc="data"):
        sets, indices, prints = _sets(model, data, columns, args)
        options = {"model": model.model, "weights": model_fingerprint(model.model), "dtype": model.dtype,
                   "data": prints, "columns": columns.as_arguments(), "augmentation": data.augmentation,
                   "method": repr(chosen), "arguments": training_arguments(args)}  # fmt: skip
        files = needed(chosen, args.save_only_model, args.world_size)
        checkpoint = checkpoint_of(args, results.overwrite, options, files, DONE)
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
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics = trainer.evaluate()
    trainer.save_model(_internal_call=True)
    if results.report:
        _report(trainer, model, measure)
    trainer.create_model_card(dataset_tags=[name for name in map(is_hub_id, _specs(data)) if name])
    trainer.save_metrics("all", metrics, combined=True)
    if args.push_to_hub:
        try:
            trainer.push_to_hub()
        except PushError as error:
            raise PushError(f"{error} (sharp-unlearn push {args.output_dir} --repo OWNER/NAME does it)") from error
    if trainer.is_world_process_zero():
        _say(trainer, metrics)


def _check_folders(model: Model, output_dir: str) -> None:
    """Raise ValueError if the results would be written over a model that is still needed."""
    if not output_dir:
        raise UsageError("--output_dir is empty: name a folder.")
    out = os.path.realpath(output_dir)
    for name, path in (("model", model.model), ("reference", model.reference)):
        if path and os.path.isdir(path) and os.path.commonpath([out, os.path.realpath(path)]) == out:
            raise ValueError(f"--output_dir {output_dir} holds --{name} {path}, which would be lost: name another one.")


def _sets(
    model: Model, data: Data, columns: Columns, args: UnlearningArguments
) -> tuple[dict[str, Any], Any, dict[str, str]]:
    """Forget, retain and test set; the rows of the first in the training data, if it is one; fingerprints of all that
    is trained on."""
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
            tables["train"], column=data.forget_column, indices=data.forget_indices, conditions=data.forget_filter
        )
        prints["rows"] = hashlib.sha256(indices.tobytes()).hexdigest()
    ready = {
        name: prepare(
            table,
            getattr(data, name),
            model.model,
            augmentation=None if name == "test" else augmentation,
            **settings,
        )
        for name, table in tables.items()
    }
    if data.train:
        forget, retain = split_forget(ready.pop("train"), indices)
        ready |= {"forget": forget, "retain": retain}
    return {"retain": None, **ready}, indices, prints


def _specs(data: Data) -> list[str]:
    return [spec for spec in (data.train, data.forget, data.retain) if spec]


def _selection(data: Data) -> str:
    """How the forget set was chosen, without what was looked for: that may be personal."""
    if data.forget_column:
        return f"rows marked in a column, {data.forget_column}"
    if data.forget_filter:
        return "rows for which a condition on their columns holds"
    return "a list of rows" if data.forget_indices else "a data set of its own"


def _report(trainer: UnlearningTrainer, model: Model, measure: Measurements) -> None:
    first = trainer.is_world_process_zero()
    others = {
        name: load_model(source).to(trainer.args.device) if first and source else None
        for name, source in (
            ("reference", model.reference),
            ("original", None if model.allow_new_head else model.model),
        )
    }
    trainer.evaluate_unlearning(
        **others,
        relearning=measure.relearning(),
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
    print(f"written: {trainer.args.output_dir} (model, README.md, {DONE})", flush=True)
