"""Time on the device without the host's, the host's without the device's, and what the profiler saw."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

Call = Callable[[], object]


def device_ms(calls: Sequence[Call], device: torch.device, repeats: int = 20, rounds: int = 7) -> float:
    """Milliseconds of a call on the device: the median of `rounds`, each of `repeats` calls back to back.

    calls: the same on different memory, taken in turn, so that caches hold nothing of the last one. The device sleeps
    while the host launches, so that it never waits for the host; without a GPU, the host's clock.
    """

    def loop() -> None:
        for k in range(repeats):
            calls[k % len(calls)]()

    loop()  # compiles, and makes what is kept
    if device.type != "cuda":
        return statistics.median(_seconds(loop) for _ in range(rounds)) * 1e3 / repeats
    torch.cuda.synchronize()
    cycles = int(_seconds(loop) * 4e9) + 1_000_000  # at up to 2 GHz: twice as long as the host takes
    found = []
    for turn in range(rounds + 1):
        torch.cuda.synchronize()
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(min(cycles, 1_000_000_000))
        first.record()
        loop()
        last.record()
        torch.cuda.synchronize()
        if turn:  # the first one makes pinned memory for a host that is this far ahead
            found.append(first.elapsed_time(last) / repeats)
    return statistics.median(found)


def host_us(calls: Sequence[Call], device: torch.device, repeats: int = 20) -> float:
    """Microseconds until a call returns, the device being idle when it begins: the median."""
    found = []
    for k in range(repeats + len(calls)):
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(_seconds(calls[k % len(calls)]))
    return 1e6 * statistics.median(found[len(calls) :])


def elapsed_ms(call: Call, device: torch.device, rounds: int) -> float:
    """Milliseconds of a call until its work is done, host and device together: the median."""
    found = []
    for _ in range(rounds + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return 1e3 * statistics.median(found[1:])


def profiled(run: Call) -> dict[str, tuple[int, float]]:
    """{name of a kernel or copy: (how often, milliseconds in all)} of what runs on the GPU during a call."""
    # acc_events: else torch 2.11 warns that a second cycle would clear the events of the first
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        run()
        torch.cuda.synchronize()
    return kernels_of(profile)


def kernels_of(profile) -> dict[str, tuple[int, float]]:
    found: dict[str, tuple[int, float]] = {}
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            count, spent = found.get(event.name, (0, 0.0))
            found[event.name] = count + 1, spent + event.time_range.elapsed_us() / 1e3
    return found


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
