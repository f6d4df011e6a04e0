"""Machine unlearning as a drop-in `transformers.Trainer`."""

from .arguments import UnlearningArguments
from .data import split_forget
from .methods import (
    METHODS,
    FineTune,
    GradientAscent,
    Influence,
    L1Sparse,
    Method,
    NegGradPlus,
    RandomLabel,
    SalUn,
    Scrub,
    SharpMinMax,
)
from .metrics import tug_of_war
from .partition import Partition
from .sharpness import ASAM, SAM
from .trainer import UnlearningTrainer

__all__ = [
    "ASAM",
    "FineTune",
    "GradientAscent",
    "Influence",
    "L1Sparse",
    "METHODS",
    "Method",
    "NegGradPlus",
    "Partition",
    "RandomLabel",
    "SAM",
    "SalUn",
    "Scrub",
    "SharpMinMax",
    "UnlearningArguments",
    "UnlearningTrainer",
    "split_forget",
    "tug_of_war",
]

__version__ = "0.1.0"
