"""Multi-tensor kernels for sharpness-aware steps: norms, displace, perturb, restore, compose, sgd, adamw.

They know nothing of unlearning: lists of tensors, boolean masks and scalars go in, tensors are changed in place.
Every backend is a module with the functions of `reference.py` and the same signatures; `reference` is the definition.

    reference   plain torch: any device, any float dtype
    tiled       CPU: cache-sized tiles, scratch memory, masks as machine words
    triton      CUDA, ROCm, XPU: one launch a sweep for any number of tensors; float32 and bfloat16. With
                TRITON_INTERPRET=1 it runs on the CPU, slowly, for tests.
"""

import importlib
import warnings
from collections.abc import Sequence
from types import ModuleType

import torch

from . import reference, tiled
from .checks import is_dense
from .direction import SGD, AdamW, Direction
from .meter import Meter, metered

BACKENDS = {"reference": "reference", "tiled": "tiled", "triton": "multi_tensor"}  # name -> module, imported when used
GPUS = ("cuda", "xpu")  # torch calls ROCm devices "cuda"

__all__ = ["AdamW", "BACKENDS", "Direction", "Meter", "SGD", "backend_for", "load", "metered", "reference", "tiled"]

_said: set[str] = set()
_tried: set[torch.device] = set()  # where a trial launch went well


def load(name: str) -> ModuleType:
    """Import a backend by its name in BACKENDS. Raises ValueError for others, ImportError where Triton is missing."""
    if name not in BACKENDS:
        raise ValueError(f"kernel_backend={name!r}: must be 'auto' or one of {sorted(BACKENDS)}.")
    return importlib.import_module(f".{BACKENDS[name]}", __name__)


def backend_for(device: torch.device, weights: Sequence[torch.Tensor] = (), name: str = "auto") -> ModuleType:
    """Return the backend for these weights on a device.

    name: "auto" takes the fastest that can run, and warns, once, where that is not the one made for the device. A name
    in BACKENDS is taken or refused: ValueError says why.
    """
    if name != "auto":
        reason = _obstacle(name, device, weights)
        if reason:
            raise ValueError(f"kernel_backend={name!r}: {reason} Use 'auto' or 'reference'.")
        return load(name)
    wanted = "tiled" if device.type == "cpu" else "triton" if device.type in GPUS else "reference"
    reason = _obstacle(wanted, device, weights)
    if reason and reason not in _said:
        _said.add(reason)
        warnings.warn(f"The {wanted!r} kernels cannot run, 'reference' is used: {reason}", stacklevel=2)
    return reference if reason else load(wanted)


def _trial(backend: ModuleType, device: torch.device) -> str | None:
    """Triton compiles when it first launches: without a C compiler, or on a GPU that it does not know, that fails.

    Only a success is remembered: a failure may be a passing one, as for want of memory."""
    if device.type not in GPUS or not torch.get_device_module(device).is_available():
        return None
    if device.index is None:
        device = torch.device(device.type, torch.get_device_module(device).current_device())
    if device in _tried:
        return None
    try:
        one = [torch.ones(16, device=device)]
        if backend.norms(one, [one], [None]).item() != 16:
            return "a trial launch gave a wrong sum."
    except Exception as error:  # whatever the compiler or the driver raises
        return f"a trial launch failed ({type(error).__name__}: {error})."
    _tried.add(device)
    return None


def _obstacle(name: str, device: torch.device, weights: Sequence[torch.Tensor]) -> str | None:
    """Why a backend cannot run; None if it can."""
    if name == "tiled" and device.type != "cpu":
        return f"it is made for the CPU, the weights are on {device.type}."
    if name == "triton":
        try:
            backend = load(name)
        except ImportError as error:
            return f"Triton cannot be imported ({error})."
        if device.type not in GPUS and not (device.type == "cpu" and backend.INTERPRETED):
            return f"Triton needs a GPU, the weights are on {device.type} (TRITON_INTERPRET=1 emulates one for tests)."
        odd = {weight.dtype for weight in weights} - set(backend.DTYPES)
        if odd:
            return f"it computes on float32 and bfloat16, some weights are {min(map(str, odd))}."
        if not all(map(is_dense, weights)):
            return "some weights have gaps or overlaps in memory."
        return _trial(backend, device)
    load(name)  # an unknown name raises
    return None
