"""One optimizer step, from a window of micro-batches to moved weights: passes, perturbation, partition, composition,
update, and what they are computed from. Which step a method makes stands in `methods`; nothing here knows a Trainer.
"""

from .items import aligned_labels, counted_items, distillation, logits_of, raw_logits, shifts_labels
from .partition import Partition, gradient_saliency
from .population import Population
from .sharpness import ASAM, SAM, Sharpness
from .sweeps import Gradient, packed
from .teacher import Teacher
from .update import UpdateHooks
from .window import Penalty, Window

__all__ = [
    "ASAM",
    "Gradient",
    "Partition",
    "Penalty",
    "Population",
    "SAM",
    "Sharpness",
    "Teacher",
    "UpdateHooks",
    "Window",
    "aligned_labels",
    "counted_items",
    "distillation",
    "gradient_saliency",
    "logits_of",
    "packed",
    "raw_logits",
    "shifts_labels",
]
