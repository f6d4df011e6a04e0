"""The plots of a report. Models differ in lightness and line style, so that they survive greyscale."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..analysis import new_figure
from ..metrics import Outputs, loss_score, roc_curve
from .markdown import format_value
from .values import Values

STYLES = {
    "unlearned": {"color": "#08306b", "linestyle": "-", "marker": "o"},
    "retrained": {"color": "#d95f0e", "linestyle": "--", "marker": "s"},
    "original": {"color": "#969696", "linestyle": ":", "marker": "^"},
}
HATCHES = {"unlearned": "", "retrained": "//", "original": ".."}
SPLIT_STYLES = {
    "forget": {"color": "#7f0000", "linestyle": "-"},
    "retain": {"color": "#74a9cf", "linestyle": "--"},
    "test": {"color": "#252525", "linestyle": ":"},
}
POINTS = 2000  # in the embedding


def draw_plots(report: Values) -> dict[str, Any]:
    """{file name: figure} of what the report's outputs allow."""
    classes = not any(found.without for splits in report.outputs.values() for found in splits.values())
    plots: dict[str, Callable[[Any, Values], None] | None] = {
        "accuracy.png": _accuracy if classes else None,
        "roc.png": _roc if "test" in report.samples else None,
        "confidence.png": _confidence if classes else None,
        "relearning.png": _relearning if report.relearning else None,
        "features.png": _features if _has_features(report) else None,
    }
    figures = {}
    for name, draw in plots.items():
        if draw is not None:
            figures[name] = new_figure()
            draw(figures[name], report)
    return figures


def _accuracy(figure: Any, report: Values) -> None:
    axis = figure.subplots()
    models, splits = list(report.outputs), list(report.samples)
    width = 0.8 / len(models)
    for i, model in enumerate(models):
        values = [report.metrics[f"accuracy/{split}"][model] for split in splits]
        heights = [100 * value.value for value in values]
        errors = [
            [100 * max(v.value - (v.value if v.low is None else v.low), 0) for v in values],
            [100 * max((v.value if v.high is None else v.high) - v.value, 0) for v in values],
        ]
        places = np.arange(len(splits)) + (i - (len(models) - 1) / 2) * width
        style = {"color": STYLES[model]["color"], "hatch": HATCHES[model], "edgecolor": "white"}
        axis.bar(places, heights, width * 0.95, label=model, **style)
        axis.errorbar(places, heights, errors, fmt="none", ecolor="black", capsize=3, linewidth=1)
        for place, height, above in zip(places, heights, errors[1], strict=True):
            axis.annotate(
                f"{height:.1f}", (place, height + above), (0, 2), textcoords="offset points", ha="center", fontsize=8
            )
    axis.set_xticks(range(len(splits)), [f"{split}\n(n = {report.samples[split]})" for split in splits])
    axis.set_ylabel("accuracy (%)")
    axis.set_ylim(0, 122)
    axis.set_yticks(range(0, 101, 20))
    axis.set_title("Accuracy, 95 % intervals")
    axis.legend(loc="upper center", ncols=len(models), fontsize=8)
    axis.grid(axis="y", alpha=0.25)
    axis.set_axisbelow(True)


def _roc(figure: Any, report: Values) -> None:
    axis = figure.subplots()
    n = report.samples["test"]
    lowest = 1 / max(n, 10)
    for model, outputs in report.outputs.items():
        fpr, tpr = roc_curve(loss_score(outputs["forget"]), loss_score(outputs["test"]))
        auc = f", AUC {format_value(report.metrics['mia_loss/auc'][model])}"
        style = {key: STYLES[model][key] for key in ("color", "linestyle")}
        label = f"{model}{auc}"
        axis.step(
            np.maximum(fpr, lowest / 3), np.maximum(tpr, lowest / 3), where="post", label=label, linewidth=2, **style
        )
    axis.plot([lowest / 3, 1], [lowest / 3, 1], color="black", linewidth=0.8, label="guessing")
    axis.set(xscale="log", yscale="log", xlim=(lowest / 2, 1), ylim=(lowest / 2, 1.1))
    axis.set_xlabel(f"false positive rate (of {n} test samples)")
    axis.set_ylabel(f"true positive rate (of {report.samples['forget']} forget samples)")
    axis.set_title("Membership inference by loss")
    axis.legend(loc="lower right", fontsize=8)
    axis.grid(alpha=0.25, which="both")


def _confidence(figure: Any, report: Values) -> None:
    figure.set_size_inches(3.6 * len(report.outputs) + 0.6, 3.6)
    axes = figure.subplots(1, len(report.outputs), sharey=True, squeeze=False)[0]
    edges = np.linspace(0, 1, 21)
    for axis, (model, outputs) in zip(axes, report.outputs.items(), strict=True):
        for split, found in outputs.items():
            shares = 100 * np.histogram(np.clip(found.confidence, 0, 1), edges)[0] / len(found)
            label = f"{split} (n = {len(found)})"
            axis.stairs(shares, edges, label=label, linewidth=2, **SPLIT_STYLES[split])
        axis.set_title(model)
        axis.set_xlabel("probability of the true label")
        axis.set_ylim(0, 102)
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("samples (%)")
    axes[0].legend(fontsize=8, loc="upper center")


def _relearning(figure: Any, report: Values) -> None:
    attacks = list(next(iter(report.relearning.values())))
    figure.set_size_inches(4.2 * len(attacks) + 0.4, 3.8)
    for axis, attack in zip(figure.subplots(1, len(attacks), sharey=True, squeeze=False)[0], attacks, strict=True):
        for model, curves in report.relearning.items():
            curve = curves[attack]
            style = {key: STYLES[model][key] for key in ("color", "linestyle")}
            values = [100 * point.value for point in curve.accuracy]
            label = f"{model}, area {curve.area:.2f}"
            axis.plot(curve.steps, values, label=label, marker=STYLES[model]["marker"], markersize=4, **style)
            if all(point.low is not None for point in curve.accuracy):
                ends = [[100 * getattr(point, end) for point in curve.accuracy] for end in ("low", "high")]
                axis.fill_between(curve.steps, *ends, color=style["color"], alpha=0.12)
        axis.set_title(f"fine-tuned on {curve.trained} {attack} samples", fontsize=10)
        axis.set_xlabel("step")
        axis.set_ylabel(f"accuracy on {curve.watched} forget samples (%)")
        axis.set_ylim(-3, 103)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)


def _has_features(report: Values) -> bool:
    first = next(iter(report.outputs.values()))
    return (
        "retain" in first and len(first["forget"]) + len(first["retain"]) > 2 and first["forget"].features.shape[1] > 1
    )


def _features(figure: Any, report: Values) -> None:
    from sklearn.decomposition import PCA

    figure.set_size_inches(3.6 * len(report.outputs) + 0.6, 3.8)
    axes = figure.subplots(1, len(report.outputs), squeeze=False)[0]
    looks = {
        "retain": {"c": SPLIT_STYLES["retain"]["color"], "s": 8, "marker": "o", "alpha": 0.5},
        "forget": {"c": SPLIT_STYLES["forget"]["color"], "s": 22, "marker": "x", "linewidths": 1.2},
    }
    for axis, (model, outputs) in zip(axes, report.outputs.items(), strict=True):
        points = {split: _some(outputs[split]) for split in looks}
        pca = PCA(2, random_state=0).fit(np.concatenate(list(points.values())))
        for split, look in looks.items():
            axis.scatter(*pca.transform(points[split]).T, label=f"{split} ({len(points[split])})", **look)
        share = 100 * pca.explained_variance_ratio_.sum()
        axis.set_title(f"{model} ({share:.0f} % of variance)", fontsize=10)
        axis.set_xlabel("principal component 1")
        axis.set_xticks([])
        axis.set_yticks([])
    axes[0].set_ylabel("principal component 2")
    axes[0].legend(fontsize=8)


def _some(outputs: Outputs) -> np.ndarray:
    rows = np.random.default_rng(0).permutation(len(outputs))[:POINTS]
    return outputs.features[np.sort(rows)].astype(np.float64)
