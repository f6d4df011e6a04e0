"""Multi-tensor kernels for sharpness-aware steps: pack, norm, perturb, restore, compose.

They know nothing of unlearning: lists of tensors, boolean masks and scalars go in, tensors are changed in place.
Every backend has the functions of `reference.py` with the same signatures; `reference` is the definition.
"""

from types import ModuleType

import torch

from . import reference, tiled

BACKENDS = {"reference": reference, "tiled": tiled}

__all__ = ["BACKENDS", "backend_for", "reference", "tiled"]


def backend_for(device: torch.device) -> ModuleType:
    """The fastest backend for tensors on a device."""
    return tiled if device.type == "cpu" else reference
