"""`sharp-unlearn unlearn`: a model and its data in, an unlearned model with card and report out."""

import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers.trainer import TRAINER_STATE_NAME

from ..arguments import UnlearningArguments
from ..data import split_forget
from ..hub import PushError
from ..images import CropFlip
from ..sources import collator_for, load_model, prepare, processing_class_of
from ..tables import forget_rows, is_hub_id, read_table
from ..trainer import UnlearningTrainer
from .evaluate import Measurements
from .method_options import MethodOptions
from .options import DATA, MODEL, Columns, option, refuse_finished, required
from .parsing import UsageError, parse

DONE = "all_results.json"
OPTIONS = "_options.json"  # "_": stays here when the folder is pushed
# What a checkpoint depends on beside model, data and method.
DECISIVE = ("learning_rate", "optim", "optim_args", "lr_scheduler_type", "num_train_epochs", "max_steps", "seed",
            "per_device_train_batch_size", "forget_batch_size", "gradient_accumulation_steps")  # fmt: skip
DEFAULTS = ("--output_dir", "unlearned", "--save_strategy", "epoch", "--save_total_limit", "1")
AUGMENTATION = {"none": None, "flip": CropFlip(0), "crop-flip": CropFlip()}


@dataclass
class Model:
    _argument_group_name = "model"

    model: str = required(f"the model that must forget: {MODEL}")
    reference: str | None = option("a model retrained without the forget set: the report compares with it")


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


def main(argv: Sequence[str]) -> None:
    model, data, columns, method, args, results, measure = parse(
        "unlearn",
        "Make a model forget a part of its training data, and write it to --output-dir with its card and the report. "
        "The forget set is named by a column, by row numbers or by a filter. An interrupted run goes on from its last "
        "checkpoint (one an epoch, --save_strategy). Runs under accelerate launch -m hf_sharp_unlearn and torchrun -m "
        "hf_sharp_unlearn too.",
        (Model, Data, Columns, MethodOptions, UnlearningArguments, Results, Measurements),
        argv,
        DEFAULTS,
    )
    refuse_finished(args.output_dir, DONE, results.overwrite)
    chosen = method.build()
    with args.main_process_first(desc="data"):
        sets, indices = _sets(model, data, columns, args)
        checkpoint = _checkpoint(
            args, results.overwrite, [*map(_plain, (model, data, columns, method)), _decisive(args)]
        )
    args.forget_selection = args.forget_selection or _selection(data)
    first = sets["forget"]
    trainer = UnlearningTrainer(
        load_model(model.model),
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


def _sets(model: Model, data: Data, columns: Columns, args: UnlearningArguments) -> tuple[dict[str, Any], Any]:
    """Forget, retain and test set, and the rows of the first in the training data, if it is one."""
    augmentation = AUGMENTATION[data.augmentation]
    settings = {**columns.as_arguments(), "images": data.images, "device": args.device}

    def prepared(spec: str, augmentation: Any) -> Any:
        return prepare(read_table(spec), spec, model.model, augmentation=augmentation, **settings)

    named = bool(data.forget_column or data.forget_indices or data.forget_filter)
    if (data.train is None) == (data.forget is None) or data.train and data.retain or data.forget and named:
        raise UsageError(
            "Give --train with one of --forget-column, --forget-indices and --forget-filter, or --forget with --retain."
        )
    indices = None
    if data.train:
        table = read_table(data.train)
        indices = forget_rows(
            table, column=data.forget_column, indices=data.forget_indices, conditions=data.forget_filter
        )
        whole = prepare(table, data.train, model.model, augmentation=augmentation, **settings)
        sets = dict(zip(("forget", "retain"), split_forget(whole, indices), strict=True))
    else:
        sets = {"forget": prepared(data.forget, augmentation)}
        sets["retain"] = prepared(data.retain, augmentation) if data.retain else None
    if data.test:
        sets["test"] = prepared(data.test, None)
    return sets, indices


def _specs(data: Data) -> list[str]:
    return [spec for spec in (data.train, data.forget, data.retain) if spec]


def _selection(data: Data) -> str:
    """How the forget set was chosen, without what was looked for: that may be personal."""
    if data.forget_column:
        return f"rows marked in a column, {data.forget_column}"
    if data.forget_filter:
        return "rows for which a condition on their columns holds"
    return "a list of rows" if data.forget_indices else "a data set of its own"


def _plain(options: Any) -> dict[str, Any]:
    return dataclasses.asdict(options)


def _decisive(args: UnlearningArguments) -> dict[str, Any]:
    return {name: str(getattr(args, name)) for name in DECISIVE}


def _checkpoint(args: UnlearningArguments, overwrite: bool, options: list[dict]) -> str | None:
    """The checkpoint to go on from. An overwritten run's are removed: they belong to the run that is replaced."""
    folder = args.output_dir
    if args.resume_from_checkpoint:
        return args.resume_from_checkpoint
    found = _last_complete(folder)
    path = os.path.join(folder, OPTIONS)
    if overwrite:
        if args.process_index == 0 and os.path.isdir(folder):
            for name in os.listdir(folder):
                if name.startswith("checkpoint-"):
                    shutil.rmtree(os.path.join(folder, name))
        found = None
    if found and os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            before = json.load(file)
        if before != json.loads(json.dumps(options)):
            raise ValueError(
                f"{found} was made with other options: pass --overwrite to begin anew, or another --output-dir."
            )
        if args.process_index == 0:
            print(f"going on from {found}", flush=True)
    elif args.process_index == 0:
        os.makedirs(folder, exist_ok=True)
        if overwrite and os.path.exists(os.path.join(folder, DONE)):
            os.remove(os.path.join(folder, DONE))
        with open(path, "w", encoding="utf-8") as file:
            json.dump(options, file)
    return found


def _last_complete(folder: str) -> str | None:
    """The last checkpoint that was written to its end: a run may have been killed while it wrote one."""
    names = [name for name in os.listdir(folder) if name.startswith("checkpoint-")] if os.path.isdir(folder) else []
    for name in sorted(names, key=lambda name: -int(name.rpartition("-")[2])):
        try:
            with open(os.path.join(folder, name, TRAINER_STATE_NAME), encoding="utf-8") as file:
                json.load(file)  # it is written last
            return os.path.join(folder, name)
        except (OSError, ValueError):
            continue
    return None


def _report(trainer: UnlearningTrainer, model: Model, measure: Measurements) -> None:
    first = trainer.is_world_process_zero()
    others = {
        name: load_model(source).to(trainer.args.device) if first and source else None
        for name, source in (("reference", model.reference), ("original", model.model))
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
