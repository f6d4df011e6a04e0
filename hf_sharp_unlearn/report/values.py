"""The values of a report, and the JSON that keeps them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from ..analysis import RelearningCurve
from ..metrics import Absent, Estimate, Outputs

SCHEMA_VERSION = 1

Value = Estimate | Absent


@dataclass
class Values:
    """What a report holds.

    metrics: {key: {model: value}}, key "accuracy/forget", model "unlearned", "retrained" or "original".
    better: {key: "higher", "lower" or "reference"}, the last one for "closest to the retrained model". samples:
    {split: n}. relearning: {model: {attack: curve}}. seconds: of each part. outputs: {model: {split: Outputs}}, not
    saved.
    """

    metrics: dict[str, dict[str, Value]]
    better: dict[str, str]
    samples: dict[str, int]
    settings: dict[str, Any]
    versions: dict[str, str]
    relearning: dict[str, dict[str, RelearningCurve]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    outputs: dict[str, dict[str, Outputs]] = field(default_factory=dict, repr=False)

    def __getitem__(self, key: str) -> Value:
        """The unlearned model's value of a metric. Raises KeyError with the names there are."""
        if key not in self.metrics:
            raise KeyError(f"{key!r}: the report has {sorted(self.metrics)}.")
        return self.metrics[key]["unlearned"]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts: what report.json holds. No sample, label or row number is in it."""
        return {
            "schema_version": SCHEMA_VERSION,
            "samples": self.samples,
            "metrics": {
                key: {"better": self.better[key], **{model: _plain(value) for model, value in values.items()}}
                for key, values in self.metrics.items()
            },
            "relearning": {
                model: {name: asdict(curve) for name, curve in curves.items()}
                for model, curves in self.relearning.items()
            },
            "settings": self.settings,
            "versions": self.versions,
            "seconds": {name: round(value, 3) for name, value in self.seconds.items()},
        }

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Self:
        """What `to_dict` gave, without the outputs. Raises KeyError where something is missing."""
        metrics = {
            key: {model: _value(value) for model, value in entry.items() if model != "better"}
            for key, entry in found["metrics"].items()
        }
        curves = {
            model: {
                name: RelearningCurve(**{**curve, "accuracy": [Estimate(**point) for point in curve["accuracy"]]})
                for name, curve in attacks.items()
            }
            for model, attacks in found["relearning"].items()
        }
        better = {key: entry["better"] for key, entry in found["metrics"].items()}
        rest = (found[name] for name in ("samples", "settings", "versions"))
        return cls(metrics, better, *rest, relearning=curves, seconds=found["seconds"])


def _plain(value: Value) -> dict[str, Any]:
    return {"absent": value.reason} if isinstance(value, Absent) else asdict(value)


def _value(found: Mapping[str, Any]) -> Value:
    return Absent(found["absent"]) if "absent" in found else Estimate(**found)
