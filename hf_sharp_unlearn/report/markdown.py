"""The report as markdown."""

from ..metrics import METRICS, Absent, Estimate
from .values import Value, Values

BETTER = {"higher": "higher", "lower": "lower", "reference": "as retrained"}
CAPTIONS = {
    "accuracy.png": "Accuracy on each split, with 95 % intervals.",
    "roc.png": "Attack by loss: who was in the training data, forget or test set? Both axes are logarithmic; the "
    "diagonal is guessing.",
    "confidence.png": "Probability of the true label. Where forget and test curves lie apart, an attacker can tell.",
    "relearning.png": "Accuracy on forget samples while the model is fine-tuned. What comes back faster than in the "
    "retrained model was still there.",
    "features.png": "Penultimate features on their first two principal components.",
}


def to_markdown(report: Values, plots: list[str] | None = None) -> str:
    """Tables, one a metric, the reasons for what is absent, and the plots (file names beside the text)."""
    lines = ["# Unlearning report", "", *warning_lines(report), _summary(report), "", *metric_table(report), ""]
    lines += relearning_table(report) or ["Relearning attack: not made (pass `relearning=Relearning(...)`).", ""]
    lines += not_measured(report)
    for plot in plots or []:
        lines += [f"![{CAPTIONS[plot]}]({plot})", "", CAPTIONS[plot], ""]
    lines += ["## What the numbers are", ""]
    for name, metric in METRICS.items():
        if any(key == name or key.startswith(f"{name}/") for key in report.metrics):
            lines.append(f"* {name}: {' '.join(metric.compute.__doc__.split())}")
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in report.seconds.items())
    lines += ["", f"Seed {report.settings['seed']}; {versions}; seconds: {seconds}.", ""]
    return "\n".join(lines)


def warning_lines(report: Values) -> list[str]:
    """What must be known before any number is read; no lines where nothing is wrong."""
    return [line for text in report.settings.get("warnings", ()) for line in (f"> **Warning.** {text}", "")]


def metric_table(report: Values) -> list[str]:
    """Lines of a table: one row a metric that at least one model has, and how to read it."""
    models = _models(report)
    lines = [f"| metric | better | {' | '.join(models)} | n | how |", "|---|---|" + "---|" * (len(models) + 2)]
    for key, values in report.metrics.items():
        shown = [value for value in values.values() if isinstance(value, Estimate)]
        if shown:
            cells = [format_value(values[m]) if m in values else "" for m in models]
            n = sorted({value.n for value in shown})
            row = [key, BETTER[report.better[key]], *cells, " / ".join(map(str, n)), shown[0].method]
            lines.append(f"| {' | '.join(row)} |")
    return [
        *lines,
        "",
        "Brackets are 95 % intervals of the kind that the last column names (for the first model); an interval over or "
        "for something leaves other sources of error out. n: samples or models behind a number, the smaller group "
        "where two are compared.",
    ]


def not_measured(report: Values, level: int = 2) -> list[str]:
    """Lines that give the reason for each number that is absent; level: of the heading."""
    absent: dict[str, list[str]] = {}
    for key, values in report.metrics.items():
        for value in values.values():
            if isinstance(value, Absent) and key not in absent.setdefault(value.reason, []):
                absent[value.reason].append(key)
    if not absent:
        return []
    reasons = [f"* {', '.join(keys)}: {reason}" for reason, keys in absent.items()]
    return [f"{'#' * level} Not measured", "", *reasons, ""]


def has_reference(report: Values) -> bool:
    """True if there is a retrained model beside the unlearned one."""
    return "retrained" in _models(report)


def _models(report: Values) -> list[str]:
    order = ("unlearned", "retrained", "original")
    return [model for model in order if any(model in values for values in report.metrics.values())]


def format_value(value: Value) -> str:
    """Value with its interval, in four significant digits: "0.942 [0.921, 0.958]"."""
    if isinstance(value, Absent):
        return "absent"
    if value.low is None and value.high is None:
        return f"{value.value:.4g}"
    low = "-inf" if value.low is None else f"{value.low:.3g}"
    high = "inf" if value.high is None else f"{value.high:.3g}"
    return f"{value.value:.4g} [{low}, {high}]"


def _summary(report: Values) -> str:
    samples = ", ".join(f"{split} {n}" for split, n in report.samples.items())
    parts = [f"Samples: {samples}."]
    tow = report.metrics["tug_of_war"]["unlearned"]
    if isinstance(tow, Estimate):
        parts.append(f"Tug-of-War {format_value(tow)}; 1 is the retrained model.")
    elif not has_reference(report):
        parts.append(
            "There is no retrained model to compare with: the numbers say how the model behaves, not how well it "
            "forgot."
        )
    parts.append(
        "Unlearning of this kind is approximate. These are tests that the model passes or fails; none of them proves "
        "that nothing is left of the forget set."
    )
    return " ".join(parts)


def relearning_table(report: Values, level: int = 2) -> list[str]:
    """Lines on the relearning attack; none if there was none. level: of the heading."""
    if not report.relearning:
        return []
    attack = report.settings["relearning"]
    lines = [
        f"{'#' * level} Relearning",
        "",
        f"{attack['steps']} steps of AdamW, learning rate {attack['learning_rate']}, batches of "
        f"{attack['batch_size']}. Accuracy on forget samples before, after, and its mean along the way (area).",
        "",
        "| fine-tuned on | model | before | after | area | watched |",
        "|---|---|---|---|---|---|",
    ]
    for name in next(iter(report.relearning.values())):
        for model in _models(report):
            if model in report.relearning:
                curve = report.relearning[model][name]
                ends = [format_value(curve.accuracy[i]) for i in (0, -1)]
                lines.append(
                    f"| {curve.trained} {name} samples | {model} | {ends[0]} | {ends[1]} | {curve.area:.3f} | "
                    f"{curve.watched} |"
                )
    return [*lines, ""]
