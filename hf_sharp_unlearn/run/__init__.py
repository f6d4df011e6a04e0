"""What happens once a run, around its steps: what is refused, what is taken from the starting weights, how long epochs
are, what is undone, chosen or evaluated in the end. Nothing here happens in a step.
"""

from . import checks, data_checks
from .active import ActiveRun, undone_if_too_large
from .checkpoints import checkpoints, fault_of, last_whole, needed, reaches_its_end, remove_torn, rotate, to_resume
from .classes import classes_to_draw
from .epochs import Epochs
from .evaluation import MeanLoss, no_better_than_chance
from .overlap import Overlap, checked_overlaps, overlaps
from .progress import LineProgress
from .rewind import Rewind
from .search import default_objective
from .start import complete_weights, keep_beside, make_partition, make_teacher, resumed_partition, resumed_teacher

__all__ = [
    "ActiveRun",
    "Epochs",
    "LineProgress",
    "MeanLoss",
    "Overlap",
    "Rewind",
    "checked_overlaps",
    "checkpoints",
    "checks",
    "classes_to_draw",
    "complete_weights",
    "data_checks",
    "default_objective",
    "fault_of",
    "keep_beside",
    "last_whole",
    "make_partition",
    "make_teacher",
    "needed",
    "overlaps",
    "reaches_its_end",
    "remove_torn",
    "no_better_than_chance",
    "resumed_partition",
    "resumed_teacher",
    "rotate",
    "to_resume",
    "undone_if_too_large",
]
