"""The model card of an unlearned model: metadata for the Hub, and a page: what was forgotten, how, and how well.

`card_of(run, ...)` renders what the run knows with `templates/model_card.md`. No sample, label, row number,
path or token is written.
"""

import dataclasses
import importlib.resources
import inspect
import re
from collections.abc import Sequence
from typing import Any

import accelerate
import torch
import transformers
from huggingface_hub import ModelCard, ModelCardData

from .. import __version__
from ..data import hub_id
from ..methods import METHODS
from ..report import CAPTIONS, format_value, has_reference, metric_table, not_measured, relearning_table, warning_lines
from .card_facts import (
    RunFacts,
    cell,
    eval_results,
    hardware,
    hub_name_of,
    inner_model,
    known_sources,
    last_evaluation,
    license_of,
    shown,
    task_of,
    training_arguments,
)

TAGS = ("machine-unlearning", "hf_sharp_unlearn")
REPORT_FOLDER = "unlearning_report"
_OF_SHARPNESS = """

Sharp MinMax, and unlearning with SAM and ASAM:

```bibtex
@inproceedings{tang2026sharpness,
  title     = {Sharpness-Aware Machine Unlearning},
  author    = {Tang, Haoran and Khanna, Rajiv},
  booktitle = {International Conference on Learning Representations},
  year      = {2026},
  url       = {https://arxiv.org/abs/2506.13715}
}
```"""


def card_of(
    run: RunFacts,
    *,
    model_name: str | None = None,
    language: Any = None,
    license: str | None = None,  # noqa: A002, Trainer's name
    tags: str | Sequence[str] | None = None,
    finetuned_from: str | None = None,
    tasks: str | Sequence[str] | None = None,
    dataset_tags: str | Sequence[str] | None = None,
    dataset: str | Sequence[str] | None = None,
    dataset_args: Any = None,
    commitment: str | None = None,
    plots: Sequence[str] = (),
) -> ModelCard:
    """The card of what `trainer` has made. commitment: see `commitment`. plots: file names in REPORT_FOLDER. The others
    are those of `Trainer.create_model_card`."""
    bare = inner_model(run.model)
    adapter = bare is not run.model and hasattr(run.model, "peft_config")
    name = model_name or run.hub_name
    base = hub_id(finetuned_from) or hub_name_of(bare)  # scripts pass the path that they loaded the model from
    task = next(iter(_listed(tasks)), None) or task_of(bare)
    known = known_sources(run.forget_dataset, run.retain_dataset)
    sources = [tag for tag in map(hub_id, _listed(dataset_tags)) if tag] or known
    results = eval_results(run, task, sources, _listed(dataset), dataset_args)
    data = ModelCardData(
        library_name="peft" if adapter else "transformers",
        base_model=base,
        license=license or license_of(base),
        language=language,
        datasets=sources or None,
        pipeline_tag=task,
        tags=_tags(run, tags),
        metrics=sorted({result.metric_type for result in results}) or None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    method = run.method
    title = _title(type(method))
    parts = {
        "model_name": name,
        "summary": _summary(run, base),
        "caveat": "What follows are measurements. None of them proves that nothing is left of the forget set.",
        "forgotten": _forgotten(run, commitment),
        "commitment_note": _commitment_note(commitment),
        "method_source": f"`{type(method).__name__}`: {title}",
        "method": [(f.name, shown(getattr(method, f.name))) for f in dataclasses.fields(method)],
        "arguments": training_arguments(run.args),
        "partition": run.partition.summary() if run.partition is not None else None,
        "partition_note": _partition_note(run),
        "results": _results(run, plots),
        "cost": _cost(run),
        "limits": _limits(run),
        "usage": _usage(run, bare, name),
        "citation": f"The method: {title}" + (_OF_SHARPNESS if run.method.sharpness is not None else ""),
        "versions": f"hf_sharp_unlearn {__version__}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, accelerate {accelerate.__version__}",
    }
    template = importlib.resources.files(__package__).joinpath("templates", "model_card.md").read_text("utf-8")
    return ModelCard.from_template(data, template_str=template, **parts)


def _tags(run: RunFacts, given: str | Sequence[str] | None) -> list[str]:
    cls = type(run.method)
    method = next((name for name, known in METHODS.items() if known is cls), cls.__name__.lower()).replace("_", "-")
    # A copy: a model's tags may be a list that all models of its class share.
    own = list(getattr(run.model, "model_tags", None) or [])
    return list(dict.fromkeys([*_listed(given), *own, *TAGS, method, "generated_from_trainer"]))


def _listed(value: Any) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else [entry for entry in value if entry]


# ---- the parts of the page ----


def _summary(run: RunFacts, base: str | None) -> str:
    origin = f"[{base}](https://huggingface.co/{base})" if base else "a trained model"
    count = len(run.forget_dataset) if run.forget_dataset is not None else 0
    return (
        f"This is {origin} after machine unlearning: it was made to forget {count:,} of its training samples with "
        f"{type(run.method).__name__}, without training it again from scratch."
    )


def _forgotten(run: RunFacts, commitment: str | None) -> list[tuple[str, str]]:
    sizes = {"forget": run.forget_dataset, "retain": run.retain_dataset}
    rows = [(f"{name} set", f"{len(data):,} samples") for name, data in sizes.items() if data is not None]
    if run.unvisited:
        total = len(run.forget_dataset)
        rows.append(
            ("**not forgotten**", f"{run.unvisited:,} of {total:,} forget samples: no step of the run used them")
        )
    rows.append(("selected", cell(run.args.forget_selection or "by row number; no reason was given")))
    rows.append(("commitment", f"`hmac-sha256:{commitment}`" if commitment else "none: the row numbers are not known"))
    return rows


def _commitment_note(commitment: str | None) -> str:
    if commitment is None:
        return "No sample of the forget set is shown here."
    return (
        "No sample of the forget set is shown here. The commitment is a salted hash of its row numbers "
        "(HMAC-SHA256; `hf_sharp_unlearn.forget_commitment`). Who unlearned the model holds the salt, and can prove "
        "with it which rows were meant."
    )


def _partition_note(run: RunFacts) -> str:
    if run.partition is None:
        return ""
    inside, total = run.partition.sizes()
    return (
        f"{inside:,} of {total:,} trainable parameters ({inside / total:.2%}) are in the forget part: those with the "
        "largest gradient on the forget set, at the starting weights. The mask itself is made from forget data and is "
        "not published."
    )


def _results(run: RunFacts, plots: Sequence[str]) -> str:
    report = run.report
    if report is None:
        table = _evaluation_table(run)
        missing = "No unlearning report was made (`trainer.evaluate_unlearning(reference)`)"
        warned = "".join(f"> **Warning.** {text}\n\n" for text in run.warnings)
        return f"{warned}{missing}; there is no comparison with a retrained model.\n\n{table}".rstrip()
    samples = ", ".join(f"{split} {n:,}" for split, n in report.samples.items())
    tow = report.metrics["tug_of_war"]["unlearned"]
    lines = [
        *warning_lines(report),
        f"Beside a model retrained without the forget set: Tug-of-War {format_value(tow)}; 1 is the retrained model."
        if has_reference(report)
        else "There is no retrained model to compare with: the numbers say how the model behaves, not how well it "
        "forgot.",
        "",
        f"Samples: {samples}. [The whole report]({REPORT_FOLDER}/report.md) says what each number is.",
        "",
        *metric_table(report),
        "",
        *relearning_table(report, level=3),
        *not_measured(report, level=3),
    ]
    for plot in plots:
        lines += [f"![{CAPTIONS[plot]}]({REPORT_FOLDER}/{plot})", "", CAPTIONS[plot], ""]
    return "\n".join(lines).rstrip()


def _evaluation_table(run: RunFacts) -> str:
    found = last_evaluation(run)
    if not found:
        return ""
    keys = list(dict.fromkeys(key for values in found.values() for key in values))
    lines = [f"| split | {' | '.join(keys)} |", "|---|" + "---|" * len(keys)]
    for split, values in found.items():
        lines.append(f"| {split} | {' | '.join(f'{values[k]:.4g}' if k in values else '' for k in keys)} |")
    return "\n".join(lines)


def _cost(run: RunFacts) -> list[tuple[str, str]]:
    runtime = [entry["train_runtime"] for entry in run.log_history if "train_runtime" in entry]
    rows = [("hardware", hardware(run.args)), ("optimizer steps", f"{run.steps:,}")]
    since = " (since the last resume)" if run.resumed else ""
    rows.append(("unlearning", f"{runtime[-1]:,.1f} s{since}" if runtime else "not finished"))
    whole = run.args.retrain_seconds
    if whole is None:
        rows.append(("retraining", "not measured"))
    else:
        share = f"; unlearning took {runtime[-1] / whole:.1%} of it" if runtime and not run.resumed else ""
        rows.append(("retraining", f"{whole:,.1f} s, as stated by who ran it{share}"))
    return rows


def _limits(run: RunFacts) -> list[str]:
    limits = [
        "The weights were moved away from the forget set by a short training run. They are not those of a model that "
        "never saw it, and an attack that was not tried here may still find traces.",
        "What the forget set has in common with the retain set is kept, on purpose.",
        "Copies of the original model, its earlier commits on the Hub included, still remember.",
    ]
    limits += [f"{overlap}." for overlap in run.overlaps]
    if run.report is None or not has_reference(run.report):
        limits.append("It was not compared with a model retrained without the forget set.")
    if run.report is None or not run.report.relearning:
        limits.append("No relearning attack was made: how fast fine-tuning brings the forget set back is not known.")
    return limits


def _usage(run: RunFacts, model: Any, name: str) -> str | None:
    suffix = re.search(r"For[A-Z]\w+$", type(model).__name__)
    auto = f"AutoModel{suffix[0]}" if suffix else None
    if auto is None or not hasattr(transformers, auto):
        return None
    return f'from transformers import {auto}\n\nmodel = {auto}.from_pretrained("{run.hub_model_id or name}")'


def _title(method: type) -> str:
    """A method and its source in a sentence: what its file opens with, or a user's own class says of itself."""
    own = method.__doc__ or ""
    text = inspect.getmodule(method).__doc__ if method in METHODS.values() else own
    if not text or text.startswith(f"{method.__name__}("):  # what dataclass writes where nothing is said
        return f"{method.__name__}, a method of its user's own."
    return " ".join(text.strip().split("\n\n")[0].split())
