"""The report on an unlearned model: its values, their text and their plots. What a number is stands in `metrics`;
text and plots know the values, not the other way round.
"""

from .markdown import CAPTIONS, format_value, has_reference, metric_table, not_measured, relearning_table, warning_lines
from .models import Prepared
from .report import UnlearningReport, evaluate_unlearning

__all__ = [
    "CAPTIONS",
    "Prepared",
    "UnlearningReport",
    "evaluate_unlearning",
    "format_value",
    "has_reference",
    "metric_table",
    "not_measured",
    "relearning_table",
    "warning_lines",
]
