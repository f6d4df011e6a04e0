"""`sharp-unlearn evaluate`: the report on an unlearned model."""

import argparse
from typing import Any

from ..analysis import Relearning
from ..report import evaluate_unlearning
from ..sources import collator_for
from .options import MODEL, command, data_group, data_of, model_of, refuse_finished, run_group


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    parser = command(
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
    data = data_group(parser)
    data.add_argument("--forget", required=True, help="the forget set")
    data.add_argument("--retain", help="the retain set, or a part of it")
    data.add_argument("--test", help="samples that no model has seen")
    measure = parser.add_argument_group("measurements")
    measure.add_argument("--svc-samples", type=int, default=5000, help="SVC attacks: most samples a side; 0: none")
    measure.add_argument("--relearn-steps", type=int, default=0, help="relearning attack: optimizer steps; 0: none")
    measure.add_argument("--relearn-samples", type=int, default=16, help="forget samples it trains on")
    measure.add_argument("--relearn-lr", type=float, default=1e-4, help="its learning rate (AdamW)")
    measure.add_argument("--feature-layer", help="module whose output is the feature; default: the penultimate layer")
    run_group(parser, "unlearning_report")


def run(options: argparse.Namespace) -> None:
    refuse_finished(options, "report.json")
    relearning = None
    if options.relearn_steps:
        steps = options.relearn_steps
        relearning = Relearning(options.relearn_samples, steps, max(1, steps // 10), options.relearn_lr)
    sets = {name: data_of(options, getattr(options, name)) for name in ("forget", "retain", "test")}
    single = {name: model_of(options, getattr(options, name)) for name in ("model", "reference", "original")}
    many = {
        f"{name}_models": (model_of(options, path) for path in getattr(options, f"{name}_models"))
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
