"""How kernels are launched: sizes of the grid, once per chunk list, on the tensors' device."""

import contextlib
import os

import torch
from torch import Tensor

from . import triton_kernels as device_code
from .table import Table

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

# Elements a program works on: 16 Ki keep every multiprocessor busy on a ResNet-50. No autotuning: trial runs of a
# kernel that works in place do harm.
CHUNK, WARPS = 1 << 14, 4
SPAN = 1 << 12  # partial sums that one program adds up


def block_for(vendor: str, adam: bool = False) -> int:
    """Elements a program takes at a time: 8 a thread, so that bfloat16 too moves 16 bytes an access. AMD's warps have
    64 threads; there AdamW takes 4, because with 8 it spills scalar registers."""
    return 1 << 11 if vendor == "hip" and not adam else 1 << 10


def launch(kernel, table: Table, arguments: dict, per_list=None, **flags) -> None:
    """Launch over each chunk list; `per_list(chunks)` gives further arguments."""
    options = {} if INTERPRETED else {"num_warps": WARPS, "enable_fp_fusion": False}
    block = block_for("hip" if torch.version.hip else "cuda", flags.get("ADAM", False))
    block = CHUNK if INTERPRETED else block  # an interpreted program costs milliseconds whatever it does
    with _on(table.numel.device):
        for chunks in table.chunks:
            kernel[(len(chunks),)](
                table.pointers,
                table.numel,
                chunks.tensor_of,
                chunks.offset_of,
                tensors=table.tensors,
                **arguments,
                **(per_list(chunks) if per_list else {}),
                **flags,
                CHUNK=CHUNK,
                BLOCK=block,
                VEC=chunks.vector,
                **options,
            )


def _on(device: torch.device):
    """Triton launches on the current device: make it the tensors' own."""
    return contextlib.nullcontext() if device.type == "cpu" else torch.get_device_module(device).device(device)


def finish(partials: Tensor, lists: int) -> tuple[Tensor, int]:
    """The sums of the lists' partial sums, and the number of launches it took: one program would take a millisecond for
    the partial sums of eight billion parameters, so that each adds up SPAN of them, and so do those after it."""
    launches = 0
    while True:
        total = partials.numel() // lists
        programs = max(-(-total // SPAN), 1)
        sums = torch.empty(lists * programs, dtype=torch.float64, device=partials.device)
        span = SPAN if not INTERPRETED or programs > 1 else 1 << max(total - 1, 0).bit_length()
        with _on(partials.device):
            device_code.finish[(lists, programs)](partials, sums, total, SPAN=span, BLOCK=span if INTERPRETED else 1024)
        launches += 1
        if programs == 1:
            return sums, launches
        partials = sums


def partials_of(table: Table, lists: int = 1) -> Tensor:
    return torch.empty(lists * table.total, dtype=torch.float64, device=table.numel.device)
