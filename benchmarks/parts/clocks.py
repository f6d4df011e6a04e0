"""How long a call takes, what it moves, and how fast this machine copies."""

import statistics
import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Clock:
    """Milliseconds of a call: events on a GPU, the host's clock elsewhere."""

    def __init__(self, device: torch.device):
        self.device = device

    def __call__(self, run) -> float:
        if self.device.type != "cuda":
            start = time.perf_counter()
            run()
            return 1e3 * (time.perf_counter() - start)
        torch.cuda.synchronize()
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        run()
        last.record()
        torch.cuda.synchronize()
        return first.elapsed_time(last)


def copy_bandwidth(device: torch.device, rounds: int, mebibytes: int) -> float:
    """GB/s of a copy between two buffers, read plus written; the median."""
    source = torch.randn(mebibytes << 18, device=device)
    out, clock = torch.empty_like(source), Clock(device)
    clock(lambda: out.copy_(source))
    times = [clock(lambda: out.copy_(source)) for _ in range(max(rounds, 5))]
    return 2 * source.nbytes / statistics.median(times) / 1e6


class Traffic(TorchDispatchMode):
    """Counts dispatched operations and the bytes of their operands: what a provider without a meter costs.

    An upper bound of a CPU's traffic (caches), and what a GPU moves if every operation is a kernel of its own.
    """

    def __init__(self):
        super().__init__()
        self.calls = self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        view = any(a.alias_info is not None and not a.alias_info.is_write for a in function._schema.arguments)
        if not view and function._schema.returns:
            self.calls += 1
            self.bytes += sum(t.nbytes for t in _tensors((args, kwargs or {}, result)))
        elif not view:
            self.calls += 1
            self.bytes += sum(t.nbytes for t in _tensors((args, kwargs or {})))
            self.bytes += sum(
                t.nbytes
                for a, value in zip(function._schema.arguments, args, strict=False)
                if a.alias_info is not None and a.alias_info.is_write
                for t in _tensors(value)
            )
        return result


def _tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
