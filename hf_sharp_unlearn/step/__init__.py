"""One optimizer step, from a window of micro-batches to moved weights: passes, perturbation, partition, composition,
update, and what they are computed from. Which step a method makes stands in `methods`; nothing here knows a Trainer.
"""

from .context import StepContext, choose_kernels, moves_in_place, without_wrapper
from .items import aligned_labels, counted_items, distillation, logits_of, raw_logits, shifts_labels
from .loss import Losses
from .optim import sweeping
from .partition import Partition, gradient_saliency
from .population import Population
from .sharpness import ASAM, SAM, Sharpness
from .steps import PendingWindow, Steps, no_objective
from .sweeps import Gradient, packed
from .teacher import Teacher
from .update import Update, checked_norm, unchanging, whole_update
from .window import Penalty, Window

__all__ = [
    "ASAM",
    "Gradient",
    "Losses",
    "Partition",
    "PendingWindow",
    "Penalty",
    "Population",
    "SAM",
    "Sharpness",
    "StepContext",
    "Steps",
    "Teacher",
    "Update",
    "Window",
    "aligned_labels",
    "checked_norm",
    "choose_kernels",
    "counted_items",
    "distillation",
    "gradient_saliency",
    "logits_of",
    "moves_in_place",
    "no_objective",
    "packed",
    "raw_logits",
    "shifts_labels",
    "sweeping",
    "unchanging",
    "whole_update",
    "without_wrapper",
]
