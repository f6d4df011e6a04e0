"""Collectives over gradients: every process leaves with the same bits."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET_ELEMENTS = 16 * 1024 * 1024  # 64 MiB of fp32 a call: few launches, bounded extra memory


def all_reduce_mean(tensors: list[Tensor | None], processes: int) -> None:
    """Replace each tensor by its mean over all processes, in place. None must be None everywhere."""
    if processes == 1:
        return
    present = [tensor for tensor in tensors if tensor is not None]
    for bucket in _buckets(present):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.all_reduce(flat)
        flat /= processes
        _unflatten(flat, bucket)


def fill_missing(tensors: list[Tensor | None], like: list[Tensor], processes: int) -> None:
    """Zeros, in place, for a gradient that only other processes have (layer drop, mixtures of experts)."""
    if processes == 1:
        return
    present = torch.tensor([tensor is not None for tensor in tensors], dtype=torch.int32, device=like[0].device)
    dist.all_reduce(present, op=dist.ReduceOp.MAX)
    for index, somewhere in enumerate(present.tolist()):
        if somewhere and tensors[index] is None:
            tensors[index] = torch.zeros_like(like[index], requires_grad=False)


def broadcast_first(tensors: list[Tensor], processes: int) -> None:
    """Give every process the first one's values (BatchNorm statistics, as DDP does at a synchronised forward)."""
    if processes == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.broadcast(flat, src=0)
        _unflatten(flat, bucket)


def _unflatten(flat: Tensor, bucket: list[Tensor]) -> None:
    offset = 0
    for tensor in bucket:
        tensor.detach().copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
        offset += tensor.numel()


def _buckets(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Consecutive tensors of one dtype and device, up to BUCKET_ELEMENTS together (or one larger tensor)."""
    buckets: list[list[Tensor]] = []
    size, kind = 0, None
    for tensor in tensors:
        new = (tensor.dtype, tensor.device)
        if not buckets or new != kind or size + tensor.numel() > BUCKET_ELEMENTS:
            buckets.append([])
            size, kind = 0, new
        buckets[-1].append(tensor)
        size += tensor.numel()
    return buckets


def all_true(value: bool, device: torch.device, processes: int) -> bool:
    """True if `value` is true on every process."""
    if processes == 1:
        return value
    flag = torch.tensor(int(value), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag.item())


def all_sum(values: list[float], device: torch.device, processes: int) -> list[float]:
    """The sums of numbers over all processes, in double precision."""
    if processes == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()


def on_first(work: Callable[[], Any], what: str, first: bool, device: torch.device, processes: int) -> Any:
    """What `work()` returns on the first process, None on the others, which wait for it (as long as the process group
    lets them). What it raises there is raised; the others raise RuntimeError then, instead of waiting. what: the name
    of the work, for that error.
    """
    result, error = None, None
    if first:
        try:
            result = work()
        except BaseException as raised:
            error = raised
    done = all_true(error is None, device, processes)
    if error is not None:
        raise error
    if not done:
        raise RuntimeError(f"{what} failed on the first process: see its error.")
    return result
