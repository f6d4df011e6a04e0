"""All metrics of a model and of those that it is compared with."""

import math
from collections.abc import Mapping

from .estimate import Absent, Estimate, Unavailable
from .subject import Subject
from .table import METRICS

Value = Estimate | Absent


def compute_metrics(subjects: Mapping[str, Subject]) -> tuple[dict[str, dict[str, Value]], dict[str, str]]:
    """({key: {model: value}}, {key: which way is better}) of all METRICS; subjects: "unlearned", "retrained" and
    "original", as far as there are any."""
    values: dict[str, dict[str, Value]] = {}
    better: dict[str, str] = {}
    for name, metric in METRICS.items():
        for title, subject in subjects.items():
            if (metric.needs == "reference" and title == "retrained") or (
                metric.needs == "sets" and title != "unlearned"
            ):
                continue
            try:
                if metric.classes and subject.without:
                    raise Unavailable(subject.without)
                if metric.needs == "reference" and "retrained" not in subjects:
                    raise Unavailable("no retrained model was given (reference)")
                against = [subjects["retrained"]] if metric.needs == "reference" else []
                found = metric.compute(subject, *against)
            except (Unavailable, ValueError) as reason:  # the other metrics are worth having
                found = {"": Absent(str(reason))}
            except ModuleNotFoundError as error:
                found = {"": Absent(f"the package {error.name} is not installed here")}
            for key, value in found.items():
                key = f"{name}/{key}" if key else name
                values.setdefault(key, {})[title] = finite(value)
                better[key] = metric.better
    return values, better


def finite(value: Value) -> Value:
    """JSON has no infinity: an infinite value is absent, an infinite end of an interval is None."""
    if isinstance(value, Absent):
        return value
    if not math.isfinite(value.value):
        return Absent(f"the value is {value.value} (n = {value.n})")
    ends = [end if end is not None and math.isfinite(end) else None for end in (value.low, value.high)]
    return Estimate(value.value, value.n, *ends, value.method)
