"""How long a call takes, and how fast this machine copies: the speed that byte rates are compared with."""

import statistics
import time
from collections.abc import Callable

import torch


class Clock:
    """Milliseconds of a call: events on a GPU, the host's clock elsewhere."""

    def __init__(self, device: torch.device):
        self.device = device

    def __call__(self, run: Callable[[], object]) -> float:
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
