"""`sharp-unlearn evaluate`: the report on an unlearned model."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..analysis import Relearning
from ..data import collator_for
from ..report import evaluate_unlearning
from .folders import letting_go
from .options import DATA, MODEL, Columns, Run, option, required
from .parsing import parse


@dataclass
class Models:
    _argument_group_name = "models"

    model: str = required(f"the unlearned model: {MODEL}")
    reference: str | None = option("a model that was retrained without the forget set")
    original: str | None = option("the model before unlearning")
    shadow_models: list[str] = option("models that saw neither forget nor test samples: LiRA and RMIA", [])
    unlearned_models: list[str] = option(
        "models made like --model with other seeds: KLoM, U-LiRA, forgetting quality", []
    )
    retrained_models: list[str] = option("models made like --reference with other seeds: the same", [])


@dataclass
class Data:
    _argument_group_name = "data"

    forget: str = required(f"the forget set: {DATA}")
    retain: str | None = option("the retain set, or a part of it")
    test: str | None = option("samples that no model has seen")


@dataclass
class Measurements:
    _argument_group_name = "measurements"

    svc_samples: int = option("SVC attacks: most samples a side; 0: none", 5000)
    relearn_steps: int = option("relearning attack: optimizer steps; 0: none", 0)
    relearn_samples: int = option("forget samples it trains on", 16)
    relearn_lr: float = option("its learning rate (AdamW)", 1e-4)
    feature_layer: str | None = option("module whose output is the feature; default: the penultimate layer")

    def relearning(self) -> Relearning | None:
        steps = self.relearn_steps
        return Relearning(self.relearn_samples, steps, max(1, steps // 10), self.relearn_lr) if steps else None


@letting_go()
def main(argv: Sequence[str]) -> None:
    models, data, columns, measure, run = parse(
        "evaluate",
        "Run each split through each model once and write every metric that the inputs allow. What cannot be computed "
        "is said to be absent, with the reason.",
        (Models, Data, Columns, Measurements, Run),
        argv,
    )
    run.start("unlearning_report", "report.json")
    sets = {name: columns.load(getattr(data, name), models.model) for name in ("forget", "retain", "test")}
    many = {
        name: (run.load_model(path) for path in getattr(models, name))
        for name in ("shadow_models", "unlearned_models", "retrained_models")
    }
    report = evaluate_unlearning(
        run.load_model(models.model),
        **sets,
        reference=run.load_model(models.reference),
        original=run.load_model(models.original),
        **many,
        relearning=measure.relearning(),
        svc_samples=measure.svc_samples,
        batch_size=run.batch_size,
        collator=collator_for(sets["forget"], models.model),
        feature_layer=measure.feature_layer,
        seed=run.seed,
    )
    paths = report.save(run.output_dir)
    print(report.to_markdown())
    print("written: " + ", ".join(paths))
