"""Are results the same every time? The same inputs many times over beside other work, tables that are written again
while the device is behind the host, and two streams at once."""

import torch
from torch import Tensor

from hf_sharp_unlearn.benchmarks.gpu.record import Part, Skipped, run_part
from hf_sharp_unlearn.kernels import SGD, AdamW, Direction, load, metered, reference
from hf_sharp_unlearn.kernels.table import Steady

SIZES = (7, 1025, 4096, 40_001, 1 << 20, 3_000_017)


def main() -> None:
    run_part("race", __doc__, run)


def run(part: Part) -> None:
    triton = load("triton")
    sizes = (7, 1025) if part.quick else SIZES
    part.attempt("the same result each time", lambda: repeated(triton, part, sizes))
    for kind in ("two lists in turn", "fresh memory"):
        part.attempt(f"tables written again, {kind}", lambda k=kind: rewritten(triton, part, sizes, k))
    part.attempt("two streams at once", lambda: two_streams(triton, part, sizes))


def normal(sizes: tuple[int, ...], device: torch.device, seed: int) -> list[Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    return [torch.randn(n, generator=generator, device=device) for n in sizes]


class Busy:
    """A copy that keeps another stream at work inside the block."""

    def __init__(self, part: Part):
        self._stream = torch.cuda.Stream() if part.gpu else None
        if part.gpu:
            self._from = torch.ones(1 << 26, device=part.device)
            self._to = torch.empty_like(self._from)

    def more(self) -> None:
        if self._stream is not None:
            with torch.cuda.stream(self._stream):
                self._to.copy_(self._from, non_blocking=True)


def repeated(triton, part: Part, sizes: tuple[int, ...]) -> dict:
    """Partial sums are added in a fixed order, and nothing is written by two programs."""
    w, r1, f0, f1 = (normal(sizes, part.device, seed) for seed in range(4))
    masks = triton.pack([x > 0.3 for x in normal(sizes, part.device, 4)], w)
    direction, none = Direction(None, r1, f0, f1, masks), [None] * len(w)
    busy, first, turns = Busy(part), None, 3 if part.quick else 50
    different: dict[str, int] = {}
    for _ in range(turns):
        busy.more()
        sums = triton.norms(w, [r1, f0], none, masks, [False, True])
        d, squares = triton.compose(direction, [torch.empty_like(x) for x in w])
        x, v = [y.clone() for y in w], [torch.zeros_like(y) for y in w]
        triton.sgd(x, direction, v, [SGD(0.1, 0.9)] * len(w))
        y, m, s = [z.clone() for z in w], [torch.zeros_like(z) for z in w], [torch.zeros_like(z) for z in w]
        triton.adamw(y, direction, m, s, [AdamW(0.01)] * len(w))
        found = {"norms": [sums], "compose": [*d, squares], "sgd": [*x, *v], "adamw": [*y, *m, *s]}
        first = first or found
        for name in found:
            if not all(map(torch.equal, found[name], first[name])):
                different[name] = different.get(name, 0) + 1
    return {"status": "failed" if different else "passed", "turns": turns, **different}


def rewritten(triton, part: Part, sizes: tuple[int, ...], kind: str) -> dict:
    """Addresses and learning rates change in every step. A run that never waits must end where one does that waits for
    the device after each, and where `reference` does."""
    steps, ends, meters = 6 if part.quick else 200, {}, {}
    lists = [normal(sizes, part.device, seed) for seed in (1, 2)]
    for name in ("asynchronous", "synchronous", "reference"):
        kernels = reference if name == "reference" else triton
        w = Steady(normal(sizes, part.device, 0))
        v = Steady([torch.zeros_like(x) for x in w])
        with metered() as meter:
            for step in range(steps):
                if part.gpu and name == "asynchronous" and hasattr(torch.cuda, "_sleep"):
                    torch.cuda._sleep(200_000)  # 0.1 ms: the device falls behind the host
                grads = lists[step % 2]
                if kind == "fresh memory":  # as backward leaves it: other addresses in every step, and other values
                    grads = [g * (1 + step / steps) for g in grads]
                kernels.sgd(w, Direction(r0=grads), v, [SGD(0.01 / (step + 1), 0.9, 0.0, 0.001)] * len(w))
                if part.gpu and name == "synchronous":
                    torch.cuda.synchronize()
        ends[name], meters[name] = [*w, *v], meter
    wrong = [n for n in ("synchronous", "reference") if not all(map(torch.equal, ends["asynchronous"], ends[n]))]
    meter = meters["asynchronous"]
    values = {"steps": steps, "rewrites": meter.rewrites, "rebuilds": meter.rebuilds}
    return {"status": "failed", "not_as": ", ".join(wrong), **values} if wrong else {"status": "passed", **values}


def two_streams(triton, part: Part, sizes: tuple[int, ...], turns: int = 100) -> dict:
    """Each has tables of its own: what one writes into its table, the other must not read."""
    if not part.gpu:
        raise Skipped("a CPU has no streams")
    streams = [torch.cuda.Stream() for _ in range(2)]
    w = [normal(sizes, part.device, seed) for seed in (0, 1)]
    g = [[normal(sizes, part.device, 10 + 2 * k + seed) for seed in range(2)] for k in range(2)]
    outs = [[[torch.empty_like(x) for x in w[k]] for _ in range(turns)] for k in range(2)]
    torch.cuda.synchronize()
    for turn in range(turns):
        for k, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                torch.cuda._sleep(50_000 * (1 + k))
                triton.displace(w[k], g[k][turn % 2], outs[k][turn], [None] * len(sizes), 0.1 + turn)
    torch.cuda.synchronize()
    wrong = 0
    right = [torch.empty_like(x) for x in w[0]]
    for turn in range(turns):
        for k in range(2):
            reference.displace(w[k], g[k][turn % 2], right, [None] * len(sizes), 0.1 + turn)
            wrong += not all(map(torch.equal, outs[k][turn], right))
    return {"status": "failed" if wrong else "passed", "launches": 2 * turns, "wrong": wrong}


if __name__ == "__main__":
    main()
