"""Machine unlearning as a drop-in `transformers.Trainer`."""

from .analysis import Relearning, forget_sets_by_score
from .arguments import UnlearningArguments
from .commitment import check_commitment, forget_commitment
from .data import split_forget
from .hub import PushError
from .images import CropFlip, ImagesInMemory
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
from .report import UnlearningReport, evaluate_unlearning
from .sharpness import ASAM, SAM
from .trainer import UnlearningTrainer

__all__ = [
    "ASAM",
    "CropFlip",
    "FineTune",
    "GradientAscent",
    "ImagesInMemory",
    "Influence",
    "L1Sparse",
    "METHODS",
    "Method",
    "NegGradPlus",
    "Partition",
    "PushError",
    "RandomLabel",
    "Relearning",
    "SAM",
    "SalUn",
    "Scrub",
    "SharpMinMax",
    "UnlearningArguments",
    "UnlearningReport",
    "UnlearningTrainer",
    "check_commitment",
    "evaluate_unlearning",
    "forget_commitment",
    "forget_sets_by_score",
    "split_forget",
    "tug_of_war",
]

__version__ = "0.1.0"
