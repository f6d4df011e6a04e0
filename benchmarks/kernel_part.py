"""Times the kernel part of a step for every provider, in rounds, and measures the copy bandwidth in the same run."""

import statistics
import time
from collections.abc import Sequence

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm.auto import tqdm

from hf_sharp_unlearn.benchmarks.providers import Data, Library, make
from hf_sharp_unlearn.benchmarks.shapes import SHAPES
from hf_sharp_unlearn.kernels import metered


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


def quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """20th, 50th and 80th percentile."""
    if len(values) < 2:
        return (values[0],) * 3
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return cuts[1], cuts[4], cuts[7]


def copy_bandwidth(device: torch.device, rounds: int, mebibytes: int) -> float:
    """GB/s of a copy between two buffers, read plus written; the median."""
    source = torch.randn(mebibytes << 18, device=device)
    out, clock = torch.empty_like(source), Clock(device)
    clock(lambda: out.copy_(source))
    times = [clock(lambda: out.copy_(source)) for _ in range(max(rounds, 5))]
    return 2 * source.nbytes / statistics.median(times) / 1e6


def agree(name: str, clip: bool, shapes, device: torch.device) -> None:
    """A provider must make the step that the reference makes before it is timed."""
    if name == "compiled":
        return  # it would compile once more; the tests compare it
    ends = []
    for provider in ("reference", name):
        data = Data.make(shapes, device)
        step = make(provider, data, clip)
        step.run()
        ends.append(step.weights)
    for i, (a, b) in enumerate(zip(*ends, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=lambda m, k=i: f"tensor {k}: {m}")


def measure(shape: str, device: torch.device, names: list[str], rounds: int) -> list[dict]:
    """One row a provider, without and with clipping. What cannot run here is left out, and its reason printed.

    All run in turn, round by round, on the same tensors. `compiled` comes when the others are done: the threads of its
    code spin on a CPU's cores.
    """
    shapes = SHAPES[shape]()
    data = Data.make(shapes, device)
    parameters = sum(w.numel() for w in data.w)
    variants = [(n, clip) for clip in (False, True) for n in names if not (clip and n.endswith("one_sweep"))]
    facts, times, clock = {}, {}, Clock(device)
    for last in (False, True):
        providers = {}
        for name, clip in variants:
            if (name == "compiled") is not last:
                continue
            try:
                provider = make(name, data, clip)
                provider.run()  # compiles
                facts[name, clip] = cost(name, provider, device)
                agree(name, clip, shapes if parameters < 1e8 else shapes[-20:], device)
            except Exception as error:
                tqdm.write(f"{name} is left out: {type(error).__name__}: {str(error).splitlines()[0][:150]}")
                continue
            providers[name, clip], times[name, clip] = provider, []
        for turn in tqdm(range(rounds + 1), desc=shape, leave=False, disable=not providers):
            for key, provider in providers.items():
                elapsed = clock(provider.run)
                if turn:  # the first round is a warm-up
                    times[key].append(elapsed)
    bandwidth = copy_bandwidth(device, rounds, 256 if device.type == "cpu" else 2048)
    rows = []
    for name, clip in (key for key in variants if key in times):
        low, middle, high = quantiles(times[name, clip])
        moved = facts[name, clip]["bytes"]
        rows.append(
            {
                "part": "kernels",
                "shape": shape,
                "tensors": len(shapes),
                "parameters": parameters,
                "clipping": clip,
                "provider": name,
                "ms_20": round(low, 3),
                "ms_50": round(middle, 3),
                "ms_80": round(high, 3),
                "bytes_a_parameter": round(moved / parameters, 1) if moved else "",
                "gb_per_s": round(moved / middle / 1e6, 1) if moved else "",
                "copy_gb_per_s": round(bandwidth, 1),
                "share_of_copy": round(moved / middle / 1e6 / bandwidth, 3) if moved else "",
                "launches": facts[name, clip]["launches"],
                "counted": facts[name, clip]["counted"],
                "peak_mib": facts[name, clip]["peak"],
                "rounds": rounds,
            }
        )
    return rows


def cost(name: str, provider, device: torch.device) -> dict:
    """Bytes, launches and peak extra memory of one step, from the step that runs."""
    peak = ""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        provider.run()
        peak = round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
    if name == "compiled":
        return {"bytes": 0, "launches": "", "counted": "", "peak": peak}
    if isinstance(provider, Library) and name != "reference":
        with metered() as meter:
            provider.run()
        return {"bytes": meter.bytes, "launches": meter.launches or "", "counted": "sweeps", "peak": peak}
    with Traffic() as traffic:
        provider.run()
    return {"bytes": traffic.bytes, "launches": traffic.calls, "counted": "torch operations", "peak": peak}
