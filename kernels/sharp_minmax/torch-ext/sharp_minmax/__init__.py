"""Multi-tensor kernels for sharpness-aware steps: norm, perturb, restore, compose.

They know nothing of unlearning: lists of tensors, boolean masks and scalars go in, tensors are changed in place.
Every backend has the functions of `reference.py` with the same signatures; `reference` is the definition.
"""

from . import reference, tiled

BACKENDS = {"reference": reference, "tiled": tiled}

__all__ = ["BACKENDS", "reference", "tiled"]
