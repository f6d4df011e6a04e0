"""How fast is each sweep, as a share of the speed of a copy on this card, and what does the host pay for it? Against
torch's multi-tensor functions and a loop over tensors; sizes of chunks and programs beside those in force."""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from hf_sharp_unlearn.benchmarks.gpu.record import Part, Skipped, run_part
from hf_sharp_unlearn.benchmarks.gpu.timing import device_ms, elapsed_ms, host_us, profiled
from hf_sharp_unlearn.benchmarks.parts.clocks import copy_bandwidth
from hf_sharp_unlearn.benchmarks.parts.providers import DECAY, LR, MOMENTUM, Tensors, make
from hf_sharp_unlearn.benchmarks.parts.shapes import SHAPES, Shapes, of_timm
from hf_sharp_unlearn.kernels import SGD, AdamW, Direction, load, metered
from hf_sharp_unlearn.kernels.table import Steady

PLAN = ("norms", "displace retain", "displace forget", "compose", "sgd")  # the kernel part of a step with SAM
TOY: Shapes = [(40, 33), (1,), (17,)]
LISTS: dict[str, Callable[[], Shapes]] = {
    "resnet50": SHAPES["resnet50"],
    "llama-1b": SHAPES["llama-1b"],
    "odd": SHAPES["odd"],
    "resnet18": lambda: of_timm("resnet18"),
}
SHARES = {"llama-1b": 0.85, "resnet50": 0.70}  # aims: of the copy bandwidth
TIMES_FOREACH, TIMES_PER_TENSOR = 2.2, 8.0


def main() -> None:
    run_part("sweeps", __doc__, run)


def run(part: Part) -> None:
    rounds, mebibytes = (5, 1) if part.quick else (20, 2048)
    copy = part.attempt(
        "copy bandwidth", lambda: {"gb_per_s": copy_bandwidth(part.device, rounds, mebibytes), "mib": mebibytes}
    )
    bandwidth = copy["gb_per_s"] if copy else float("nan")
    lists = {"toy": lambda: TOY} if part.quick else LISTS

    def measure(name: str, dtype: torch.dtype) -> None:
        title = f"{name} {str(dtype)[6:]}"
        part.attempt(title, lambda: one_list(part, name, lists[name](), dtype, bandwidth), needs=6)
        part.free()

    first = ("toy",) if part.quick else ("resnet50", "llama-1b")
    for name in first:
        measure(name, torch.float32)
    measure(first[-1], torch.bfloat16)
    for name in first:
        part.attempt(f"{name}, chunks and warps", lambda n=name: grid(part, n, lists[n](), bandwidth), needs=8)
        part.free()
    for name in [name for name in lists if name not in first]:
        measure(name, torch.float32)


@torch.no_grad()
def one_list(part: Part, name: str, shapes: Shapes, dtype: torch.dtype, bandwidth: float) -> None:
    """Rows of one list of tensors: sweep by sweep, then whole kernel parts, one way of making them at a time."""
    title = f"{name} {str(dtype)[6:]}"
    big = sum(torch.Size(shape).numel() for shape in shapes) > 1e8
    sets = [Tensors.make(shapes, part.device, dtype) for _ in range(1 if big else 3)]
    shares = by_sweep(part, title, sets, big, bandwidth, only_plan=part.quick and dtype != torch.float32)
    part.attempt(f"{title}, torch's fused SGD", lambda: fused_sgd(part, sets, bandwidth))
    if dtype == torch.float32 and name in SHARES:
        measured = {sweep: shares[sweep] for sweep in PLAN if sweep in shares}
        worst = min(measured, key=measured.get, default=None)
        goal = SHARES[name]
        part.aim(f"{title}, slowest sweep ({worst}), share of copy", measured.get(worst), at_least=goal)
    if dtype != torch.float32:
        return
    ways = ["triton", "triton_one_sweep", "foreach", *([] if big else ["per_tensor"])]
    ways += ["reference"] if part.quick else []
    whole = {}
    for way in ways:
        whole[way] = part.attempt(f"{title}, all: {way}", lambda w=way: one_way(part, w, sets[0]), needs=3)
        part.free()
    if name in SHARES:
        ratio = quotient(whole["foreach"], whole["triton"], "kernel_ms")
        part.aim(f"{title}, time on the GPU, foreach / triton", ratio, at_least=TIMES_FOREACH)
    if name == "resnet50":
        ratio = quotient(whole["per_tensor"], whole["triton"], "elapsed_ms")
        part.aim(f"{title}, time, per_tensor / triton", ratio, at_least=TIMES_PER_TENSOR)


def by_sweep(part: Part, title: str, sets: list[Tensors], big: bool, bandwidth: float, only_plan: bool) -> dict:
    """A row a sweep, and their sum over the plan. Returns the shares of the copy bandwidth."""
    shares, milliseconds = {}, {}
    squares = [[torch.zeros_like(x) for x in data.momenta] for data in sets]
    if big:  # one set is far more than a cache holds; gradients in exchanged roles have other addresses
        sets, squares = [*sets, swapped(sets[0])], 2 * squares
    calls = [sweeps(load("triton"), data, more) for data, more in zip(sets, squares, strict=True)]
    for sweep in PLAN if only_plan else calls[0]:
        found = part.attempt(
            f"{title}, {sweep}", lambda s=sweep: one_sweep(part, [one[s] for one in calls], bandwidth), needs=2
        )
        if found:
            shares[sweep], milliseconds[sweep] = found["share_of_copy"], found["gpu_ms"]
    if all(sweep in milliseconds for sweep in PLAN):
        part.add(f"{title}, the plan's sweeps together", gpu_ms=sum(milliseconds[sweep] for sweep in PLAN))
    return shares


def quotient(above: dict | None, below: dict | None, key: str) -> float | None:
    if not above or not below or not above.get(key) or not below.get(key):
        return None
    return above[key] / below[key]


def swapped(data: Tensors) -> Tensors:
    return Tensors(data.w, data.momenta, data.shadows, data.f0, data.r0, data.f1, data.r1, data.masks)


def sweeps(k, data: Tensors, squares: list[Tensor]) -> dict[str, Callable[[], object]]:
    """The sweeps of a step by name, with the lists that stay marked as such, as the trainer marks them. None waits.

    squares: AdamW's second state; its first one is SGD's.
    """
    w, v, shadows = Steady(data.w), Steady(data.momenta), Steady(data.shadows)
    masks, n = Steady(k.pack(data.masks, data.w)), len(data.w)
    none, zeros = [None] * n, [0.0] * n
    rules, adam = [SGD(LR, MOMENTUM, 0.0, DECAY)] * n, [AdamW(1e-4)] * n
    mixed = Direction(None, data.r1, data.f0, data.f1, masks)
    states = v, Steady(squares)
    return {
        "norms": lambda: k.norms(w, [data.r0, data.f0], none, masks, [False, True]),
        "norms ASAM": lambda: k.norms(w, [data.r0, data.f0], zeros, masks, [False, True]),
        "displace retain": lambda: k.displace(w, data.r0, shadows, none, 1e-3, masks, False),
        "displace forget": lambda: k.displace(w, data.f0, shadows, none, 1e-3, masks, True),
        "displace forget ASAM": lambda: k.displace(w, data.f0, shadows, zeros, 1e-3, masks, True),
        "compose": lambda: k.compose(mixed),  # over r1: the same each time
        "sgd": lambda: k.sgd(w, Direction(r0=data.r1), v, rules),
        "compose and sgd": lambda: k.sgd(w, mixed, v, rules),
        "restore": lambda: k.restore(data.shadows, data.w, list(range(n))),
        "adamw": lambda: k.adamw(w, Direction(r0=data.r1), *states, adam),
        "compose and adamw": lambda: k.adamw(w, mixed, *states, adam),
    }


def one_sweep(part: Part, calls: list[Callable[[], object]], bandwidth: float) -> dict:
    """hit: the same tensors again. miss: gradients at other addresses, as in every step of a run."""
    repeats, rounds = (1, 1) if part.quick else (20, 7)
    with metered() as meter:
        calls[0]()
    ms = device_ms(calls, part.device, repeats, rounds)
    return {
        "gpu_ms": ms,
        **rates(meter.bytes, ms, bandwidth),
        "host_us_hit": host_us(calls[:1], part.device, repeats),
        "host_us_miss": host_us(calls, part.device, repeats),
        "launches": meter.launches,
    }


def rates(moved: int, ms: float, bandwidth: float) -> dict:
    return {"gb_per_s": moved / ms / 1e6, "share_of_copy": moved / ms / 1e6 / bandwidth}


def one_way(part: Part, way: str, data: Tensors) -> dict:
    """A whole kernel part as the host drives it, with its waits; and what the profiler saw of it on the GPU."""
    provider = make(way, data, False)
    found = {"elapsed_ms": elapsed_ms(provider.run, part.device, 1 if part.quick else 10)}
    if way.startswith("triton"):
        with metered() as meter:
            provider.run()
        found |= {"launches": meter.launches, "rebuilds": meter.rebuilds}
    if part.gpu:
        turns = 3
        seen = profiled(lambda: [provider.run() for _ in range(turns)])
        found["kernel_ms"] = sum(spent for _, spent in seen.values()) / turns
        found["profiled_launches"] = sum(count for count, _ in seen.values()) / turns
    return found


def fused_sgd(part: Part, sets: list[Tensors], bandwidth: float) -> dict:
    """A yardstick: what torch's own fused kernel makes of the update alone."""
    if sets[0].w[0].dtype != torch.float32:
        raise Skipped("its momenta are in the weights' dtype: it moves other bytes")

    def call(d: Tensors) -> None:
        torch._fused_sgd_(d.w, d.r1, d.momenta, weight_decay=DECAY, momentum=MOMENTUM, lr=LR, dampening=0.0,
                          nesterov=False, maximize=False, is_first_step=False)  # fmt: skip

    ms = device_ms([lambda d=d: call(d) for d in sets], part.device, *((1, 1) if part.quick else (20, 7)))
    return {"gpu_ms": ms, **rates(5 * sum(w.nbytes for w in sets[0].w), ms, bandwidth)}


@torch.no_grad()
def grid(part: Part, name: str, shapes: Shapes, bandwidth: float) -> None:
    """The plan's sweeps with other sizes of chunks and programs: a row each."""
    launch, triton = (importlib.import_module(f"hf_sharp_unlearn.kernels.{n}") for n in ("launch", "multi_tensor"))
    kept = launch.CHUNK, launch.WARPS
    big = sum(torch.Size(shape).numel() for shape in shapes) > 1e8
    sets = [Tensors.make(shapes, part.device) for _ in range(1 if big else 3)]

    def measure() -> dict:
        calls = [sweeps(triton, data, data.momenta) for data in sets]  # AdamW is not called
        repeats, rounds = (1, 1) if part.quick else (10, 3)
        with metered() as meter:
            [calls[0][sweep]() for sweep in PLAN]
        ms = sum(device_ms([one[sweep] for one in calls], part.device, repeats, rounds) for sweep in PLAN)
        return {"gpu_ms": ms, **rates(meter.bytes, ms, bandwidth)}

    points = (
        [(1 << 13, 4)] if part.quick else [(chunk, warps) for warps in (4, 8) for chunk in (1 << 12, 1 << 13, 1 << 14)]
    )
    try:
        for chunk, warps in points:
            launch.CHUNK = triton.CHUNK = chunk
            launch.WARPS = warps
            mark = " (in force)" if (chunk, warps) == kept else ""
            part.attempt(f"{name}, chunks of {chunk}, {warps} warps{mark}", measure, needs=3)
    finally:
        launch.CHUNK = triton.CHUNK = kept[0]
        launch.WARPS = kept[1]


if __name__ == "__main__":
    main()
