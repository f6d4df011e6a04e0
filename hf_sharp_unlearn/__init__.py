"""Machine unlearning as a drop-in `transformers.Trainer`."""

from .arguments import UnlearningArguments
from .data import split_forget
from .methods import METHODS, Method, NegGradPlus, SharpMinMax
from .metrics import tug_of_war
from .partition import Partition
from .sharpness import ASAM, SAM
from .trainer import UnlearningTrainer

__all__ = [
    "ASAM",
    "METHODS",
    "Method",
    "NegGradPlus",
    "Partition",
    "SAM",
    "SharpMinMax",
    "UnlearningArguments",
    "UnlearningTrainer",
    "split_forget",
    "tug_of_war",
]

__version__ = "0.1.0"
