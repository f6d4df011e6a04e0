"""The report on an unlearned model: every metric that its inputs allow, as JSON, markdown and plots.

    report = evaluate_unlearning(model, forget=..., retain=..., test=..., reference=retrained)
    report["tug_of_war"].value        report.save("folder")

Each split is run through each model once. A number that cannot be computed is absent with the reason, never 0.
"""

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader

from ..analysis import Relearning, relearning_attack
from ..data import problem_of_model
from ..metrics import Outputs, Subject, Unavailable, compute_metrics
from ..run import overlaps
from .markdown import to_markdown
from .models import Prepared, runner_of
from .plots import draw_plots
from .values import SCHEMA_VERSION, Values
from .warnings import warnings_of

SPLITS = ("forget", "retain", "test")
MODELS = ("unlearned", "retrained", "original")


@dataclass
class UnlearningReport(Values):
    """The values, and how they are shown and kept: as text, as plots, in a folder."""

    def to_markdown(self) -> str:
        """The report as a person reads it."""
        return to_markdown(self)

    def save(self, folder: str, plots: bool = True) -> list[str]:
        """Write report.json, report.md and the plots; return the paths. Plots need the outputs, which `load` lacks."""
        os.makedirs(folder, exist_ok=True)
        drawn = draw_plots(self) if plots and self.outputs else {}
        texts = {
            "report.json": json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n",
            "report.md": to_markdown(self, list(drawn)),
        }
        for name, text in texts.items():
            with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
                file.write(text)
        for name, figure in drawn.items():
            figure.savefig(os.path.join(folder, name), dpi=110)
        return [os.path.join(folder, name) for name in (*drawn, *texts)]

    @classmethod
    def load(cls, path: str) -> "UnlearningReport":
        """Read report.json. Raises ValueError for another schema version."""
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        if found.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(
                f"path={path!r} has schema version {found.get('schema_version')!r}, this release reads "
                f"{SCHEMA_VERSION}: make the report again, or read it with the release that wrote it."
            )
        return cls.from_dict(found)


def evaluate_unlearning(
    model: nn.Module,
    *,
    forget: Any,
    retain: Any = None,
    test: Any = None,
    reference: nn.Module | Prepared | None = None,
    original: nn.Module | Prepared | None = None,
    shadow_models: Iterable[nn.Module | Prepared] = (),
    unlearned_models: Iterable[nn.Module | Prepared] = (),
    retrained_models: Iterable[nn.Module | Prepared] = (),
    relearning: Relearning | None = None,
    svc_samples: int = 5000,
    batch_size: int = 128,
    collator: Callable | None = None,
    label_names: Sequence[str] = ("labels",),
    feature_layer: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> UnlearningReport:
    """Measure how well a model has forgotten.

    model: the unlearned one. reference: one that was retrained without the forget set; most numbers mean little without
        it. original: the model before unlearning, for comparison.
    forget, retain, test: map-style data sets, or DataLoaders (without a relearning attack). test: samples like the
        training data that no model has seen.
    shadow_models: models that saw neither forget nor test samples, for LiRA and RMIA. unlearned_models,
        retrained_models: models made like `model` and `reference` with other seeds, for KLoM, U-LiRA and forgetting
        quality. All three may be generators that load one model at a time. Models that call their classes as `model`
        does and number them otherwise are understood; one that needs its data prepared otherwise comes as `Prepared`.
    relearning: an attack to make, see `Relearning`; None leaves it out. svc_samples: most samples a side that the SVC
        attacks train on; 0 leaves them out. feature_layer: see `metrics.features`.

    No model is changed. Raises ValueError for input that cannot be used, and models of other classes, before anything
    is run where that can be seen.
    """
    sets = {name: data for name, data in zip(SPLITS, (forget, retain, test), strict=True) if data is not None}
    _check(model, sets, reference, original, svc_samples, relearning)
    seconds: dict[str, float] = {}
    clock = functools.partial(_timed, seconds)
    runner = functools.partial(runner_of, judged=model, sets=sets, collator=collator, label_names=label_names)
    options = {"batch_size": batch_size, "feature_layer": feature_layer, "progress": progress}

    def slim(name: str, models: Iterable[Any], splits: Iterable[str]) -> list[dict[str, Outputs]]:
        found = []
        for i, one in enumerate(models):
            with clock("forward"):
                full = runner(one, f"{name} {i}").outputs(splits, features=False, **options)
            found.append({split: outputs.slim() for split, outputs in full.items()})
        return found

    given = {name: m for name, m in zip(MODELS, (model, reference, original), strict=True) if m is not None}
    models = {name: runner(m, name) for name, m in given.items()}
    outputs = {}
    for name, one in models.items():
        with clock("forward"):
            outputs[name] = one.outputs(sets, **options)
    unseen = [split for split in ("forget", "test") if split in sets]
    around = {
        "shadows": slim("shadow", shadow_models, unseen),
        "unlearned": slim("unlearned", unlearned_models, sets),
        "retrained": slim("retrained", retrained_models, sets),
    }
    subjects = {
        name: Subject(splits, seed, svc_samples, **(around if name == "unlearned" else {"shadows": around["shadows"]}))
        for name, splits in outputs.items()
    }
    with clock("svc"):
        for subject in subjects.values():
            _quietly(lambda subject=subject: subject.judged)
    with clock("metrics"):
        metrics, better = compute_metrics(subjects)
    curves = {}
    if relearning is not None:
        with clock("relearning"):
            for name, one in models.items():
                curves[name] = relearning_attack(
                    one.model,
                    one.sets["forget"],
                    one.sets.get("retain"),
                    relearning,
                    seed=seed,
                    collator=one.collator,
                    label_names=label_names,
                    batch_size=batch_size,
                    progress=progress,
                )
    settings = {
        "seed": seed,
        "svc_samples": svc_samples,
        "batch_size": batch_size,
        "feature_layer": feature_layer,
        "relearning": None if relearning is None else asdict(relearning),
        "models": {
            "shadow": len(around["shadows"]),
            **{f"{k}_set": len(around[k]) for k in ("unlearned", "retrained")},
        },
        "warnings": [*warnings_of(outputs), *_shared(sets, label_names)],
    }
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    samples = {split: len(found) for split, found in outputs["unlearned"].items()}
    return UnlearningReport(metrics, better, samples, settings, versions, curves, seconds, outputs)


def _shared(sets: Mapping[str, Any], label_names: Sequence[str]) -> list[str]:
    """What the sets have in common, by content: an attack cannot tell a sample from itself."""
    indexed = {name: data for name, data in sets.items() if not isinstance(data, DataLoader)}
    return [f"{overlap.describe(rows=False)}." for overlap in overlaps(indexed, labels=label_names)]


def _quietly(compute: Callable[[], Any]) -> None:
    try:
        compute()
    except (Unavailable, ValueError):  # said where the number is asked for
        pass


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Adds the seconds of the block to those of its name."""
    start = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


def _check(
    model: Any, sets: Mapping[str, Any], reference: Any, original: Any, svc_samples: int, relearning: Any
) -> None:
    for name, candidate in (("model", model), ("reference", reference), ("original", original)):
        candidate = candidate.model if isinstance(candidate, Prepared) and name != "model" else candidate
        if not isinstance(candidate, nn.Module) and not (candidate is None and name != "model"):
            raise ValueError(
                f"{name} is a {type(candidate).__name__}: pass a torch.nn.Module (from_pretrained loads one)."
            )
    if "forget" not in sets:
        raise ValueError("forget=None: there is nothing to judge without the forget set.")
    for name, data in sets.items():
        indexed = hasattr(data, "__getitem__") and hasattr(data, "__len__")
        if not indexed and not isinstance(data, DataLoader):
            raise ValueError(
                f"{name} is a {type(data).__name__}: pass a map-style data set, a DataLoader, or {name}=None to do "
                "without."
            )
        if indexed and len(data) == 0:
            raise ValueError(f"{name} is empty.")
        if relearning is not None and not indexed and name != "test":
            raise ValueError(
                f"{name} is a DataLoader: the relearning attack chooses samples, pass a map-style data set."
            )
    if relearning is not None and len(sets["forget"]) < 2:
        raise ValueError("forget has one sample: the relearning attack needs one to train on and one to watch.")
    if relearning is not None and problem_of_model(model) is not None:
        raise ValueError(
            f"relearning={relearning!r}: the attack watches accuracies, and the model has no classes "
            f"({problem_of_model(model)}). Leave it out."
        )
    if isinstance(svc_samples, bool) or svc_samples < 0:
        raise ValueError(f"svc_samples={svc_samples!r}: must be 0 (no SVC attacks) or a number of samples.")
