"""What happens once a run, around its steps: what is refused, what is taken from the starting weights, how long epochs
are, what is undone, chosen or evaluated in the end. Nothing here happens in a step.
"""

from . import checks, data_checks
from .active import ActiveRun, undone_if_too_large
from .classes import classes_to_draw
from .epochs import Epochs
from .evaluation import MeanLoss, no_better_than_chance
from .progress import LineProgress
from .rewind import Rewind
from .search import default_objective
from .start import complete_weights, keep_beside, make_partition, make_teacher, resumed_partition, resumed_teacher

__all__ = [
    "ActiveRun",
    "Epochs",
    "LineProgress",
    "MeanLoss",
    "Rewind",
    "checks",
    "classes_to_draw",
    "complete_weights",
    "data_checks",
    "default_objective",
    "keep_beside",
    "make_partition",
    "make_teacher",
    "no_better_than_chance",
    "resumed_partition",
    "resumed_teacher",
    "undone_if_too_large",
]
