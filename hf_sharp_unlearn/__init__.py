"""Machine unlearning as a drop-in `transformers.Trainer`.

The names below are the public ones, with `hf_sharp_unlearn.metrics` and `hf_sharp_unlearn.kernels`. They are imported
when they are first used: a command line that only prints its help, or a single room, costs no torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .analysis import Relearning, forget_sets_by_score
    from .arguments import UnlearningArguments
    from .data import CropFlip, ImagesInMemory, split_forget
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
    from .report import UnlearningReport, evaluate_unlearning
    from .sharing import PushError, check_commitment, forget_commitment
    from .step import ASAM, SAM, Partition
    from .trainer import UnlearningTrainer

_HOMES = {
    "analysis": ("Relearning", "forget_sets_by_score"),
    "arguments": ("UnlearningArguments",),
    "data": ("CropFlip", "ImagesInMemory", "split_forget"),
    "methods": ("METHODS", "FineTune", "GradientAscent", "Influence", "L1Sparse", "Method", "NegGradPlus",
                "RandomLabel", "SalUn", "Scrub", "SharpMinMax"),
    "metrics": ("tug_of_war",),
    "report": ("UnlearningReport", "evaluate_unlearning"),
    "sharing": ("PushError", "check_commitment", "forget_commitment"),
    "step": ("ASAM", "SAM", "Partition"),
    "trainer": ("UnlearningTrainer",),
}  # fmt: skip
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
