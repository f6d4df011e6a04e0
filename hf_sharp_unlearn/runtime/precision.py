"""Autocast: switched off where full precision is claimed, and kept from remembering weights that have moved.

Under autocast torch keeps the narrow copy of each weight that it has made, until the outermost autocast context ends. A
context that is left open around several passes would thus serve the copies of weights that have moved since.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


def forget_casts() -> None:
    """Let autocast cast the weights anew: they have moved. Costs nothing where no autocast context is open."""
    torch.clear_autocast_cache()


@contextlib.contextmanager
def full_precision(module: nn.Module) -> Iterator[nn.Module]:
    """The module's own forward inside the block, without the autocast that accelerate wraps around it and without one
    that is open around the call. Afterwards everything is as it was.

    (`Accelerator.unwrap_model(keep_fp32_wrapper=False)` does the first of these for good.)
    """
    wrapped, own = module.__dict__.get("forward"), module.__dict__.get("_original_forward")
    device = next((weight.device.type for weight in module.parameters()), "cpu")
    if own is not None:
        module.forward = own
    try:
        with torch.autocast(device, enabled=False) if _has_autocast(device) else contextlib.nullcontext():
            yield module
    finally:
        if own is not None:
            module.forward = wrapped


def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)
