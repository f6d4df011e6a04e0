"""Autocast and TF32: switched off where full precision is claimed, what they make of a weight, and autocast kept from
remembering weights that have moved.

Under autocast torch keeps the narrow copy of each weight that it has made, until the outermost autocast context ends. A
context that is left open around several passes would thus serve the copies of weights that have moved since.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

_PLACES = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn


def forget_casts() -> None:
    """Let autocast cast the weights anew: they have moved. Costs nothing where no autocast context is open."""
    torch.clear_autocast_cache()


@contextlib.contextmanager
def allowing_tf32(allowed: bool) -> Iterator[None]:
    """Products of float32 matrices, and float32 convolutions, with TF32's 10 bits of mantissa or without; as before
    afterwards. It says something on NVIDIA GPUs only.

    torch has two ways to say it, `allow_tf32` and `fp32_precision`, and refuses to read the first where only the second
    was used. The first sets both, so it is taken wherever it can be read.
    """
    before = [place.fp32_precision for place in _PLACES]
    try:
        older = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        _ = torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:
        older = None
    try:
        if older is None:
            for place in _PLACES:
                place.fp32_precision = "tf32" if allowed else "ieee"
        else:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
        yield
    finally:
        if older is not None:
            torch.set_float32_matmul_precision(older[0])
            torch.backends.cudnn.allow_tf32 = older[1]
        for place, value in zip(_PLACES, before, strict=True):
            place.fp32_precision = value


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


def cast_in_force(device: torch.device, mixed_precision: str | None) -> Callable[[Tensor], Tensor] | None:
    """What a product makes of a weight that it reads, now, on this device; None where it reads what is there.

    Of weights with two or more dimensions: others are added or multiplied elementwise, in their own precision.
    mixed_precision: accelerate's.
    """
    narrow = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mixed_precision or "no")
    if narrow is None and _has_autocast(device.type) and torch.is_autocast_enabled(device.type):
        narrow = torch.get_autocast_dtype(device.type)
    if narrow is not None:
        return lambda weight: weight if weight.ndim < 2 else weight.to(narrow).to(weight.dtype)
    matmul, convolution = (place.fp32_precision == "tf32" for place in _PLACES[:2])
    if device.type != "cuda" or not (matmul or convolution):
        return None
    return lambda weight: _tf32(weight) if weight.ndim >= 2 and (convolution if weight.ndim > 2 else matmul) else weight


def _tf32(weight: Tensor) -> Tensor:
    """A float32 weight with 10 bits of mantissa, rounded to the nearest."""
    if weight.dtype != torch.float32:
        return weight
    return ((weight.view(torch.int32) + (1 << 12)) & -(1 << 13)).view(torch.float32)


def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)
