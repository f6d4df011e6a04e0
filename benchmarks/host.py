"""What do the sweeps of a step cost the host, which on small models is what a GPU waits for?

    python -m hf_sharp_unlearn.benchmarks.host
    python benchmarks/host.py --lists resnet50                 the same in a checkout

The Triton backend and the optimizers run on a CPU with launches that launch nothing, on small tensors. What is left is
what the host does: read addresses, keep tables, hand over numbers. Gradients are new in every step, as in training.
Three ways take turns, step by step:

kept    tables are kept and written again, as they are in training
made    tables are made in every call
known   gradients lie where they lay: nothing is written either

Microseconds a step: the norms, two perturbations, compose, the update (with the optimizer around it), and of all of it
what `table_of` takes. Rows are appended to host.csv.
"""

import argparse
import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hf_sharp_unlearn.benchmarks.parts.options import parser_of
from hf_sharp_unlearn.benchmarks.parts.rows import quantiles, save, surroundings
from hf_sharp_unlearn.kernels import Direction, multi_tensor, table
from hf_sharp_unlearn.kernels.table import Steady
from hf_sharp_unlearn.runtime import progress_bar
from hf_sharp_unlearn.step import optim

# Number of tensors, and the optimizer: a ResNet-50; a Llama of 1.2 B parameters; LoRA on all its linear layers.
LISTS = {"resnet50": (161, optim.SGD), "llama-1b": (146, optim.AdamW), "lora": (224, optim.AdamW)}
WAYS = ("kept", "made", "known")


@contextlib.contextmanager
def nothing_launched() -> Iterator[None]:
    """The Triton backend without its kernels; sums of squares are zero."""
    own = multi_tensor.launch, multi_tensor.finish
    multi_tensor.launch = lambda *arguments, **flags: None
    multi_tensor.finish = lambda partials, lists: (torch.zeros(lists, dtype=torch.float64), 1)
    try:
        yield
    finally:
        multi_tensor.launch, multi_tensor.finish = own


class Timed:
    """A function, and the seconds spent in it."""

    def __init__(self, function: Callable):
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments, **keywords):
        start = time.perf_counter()
        try:
            return self.function(*arguments, **keywords)
        finally:
            self.seconds += time.perf_counter() - start


class Step:
    """The sweeps of a Sharp MinMax step over `count` tensors of 16 elements, half of them in the forget part."""

    def __init__(self, count: int, optimizer: type):
        self.params = [torch.nn.Parameter(torch.ones(16)) for _ in range(count)]
        self.weights = Steady(param.detach() for param in self.params)
        self.masks = Steady(multi_tensor.pack([torch.arange(16) < 8] * count, self.weights))
        self.shadows, self.etas = Steady(map(torch.empty_like, self.weights)), [0.0] * count
        self.optimizer = optimizer(self.params, lr=0.1, **({"momentum": 0.9} if optimizer is optim.SGD else {}))
        self.old: dict[str, list[Tensor]] = {}

    def gradients(self, fresh: bool) -> dict[str, list[Tensor]]:
        if fresh or not self.old:
            # The old ones live until the new ones are made: no address comes again, as on a GPU's pool.
            self.old = {name: [torch.zeros(16) for _ in self.params] for name in ("r0", "f0", "r1", "f1")}
        return self.old

    def run(self, way: str) -> dict[str, float]:
        """Microseconds by sweep. way: one of WAYS."""
        g, found, plain = self.gradients(way != "known"), {}, multi_tensor.table_of
        timed = multi_tensor.table_of = Timed(plain)

        def measured(name: str, call: Callable) -> object:
            if way == "made":
                table._slots.clear()
                table._numbers.clear()
            start = time.perf_counter()
            result = call()
            found[name] = found.get(name, 0.0) + 1e6 * (time.perf_counter() - start)
            return result

        def displace(name: str, inside: bool) -> None:
            multi_tensor.displace(self.weights, g[name], self.shadows, self.etas, 0.1, self.masks, inside)

        def update() -> None:
            self.optimizer.stage(backend=multi_tensor)
            self.optimizer.step()

        try:
            parts = [g["r0"], g["f0"]], self.etas, self.masks, [False, True]
            measured("norms", lambda: multi_tensor.norms(self.weights, *parts))
            measured("displace", lambda: displace("r0", False))
            measured("displace", lambda: displace("f0", True))
            direction = Direction(None, g["r1"], g["f0"], g["f1"], self.masks)
            outs, _ = measured("compose", lambda: multi_tensor.compose(direction, g["r0"]))
            for param, grad in zip(self.params, outs, strict=True):
                param.grad = grad
            measured("update", update)
        finally:
            multi_tensor.table_of = plain
        return {**found, "all": sum(found.values()), "table_of": 1e6 * timed.seconds}


def measure(name: str, rounds: int) -> list[dict]:
    """A row for each sweep."""
    count, optimizer = LISTS[name]
    step, times = Step(count, optimizer), {way: [] for way in WAYS}
    gc.collect()
    gc.disable()
    try:
        with nothing_launched():
            for turn in progress_bar(range(rounds + 10), desc=name, leave=False):
                for way in WAYS:
                    step.run("kept")  # what the way before has left is no advantage
                    found = step.run(way)
                    if turn >= 10:
                        times[way].append(found)
    finally:
        gc.enable()
    rows = []
    for sweep in times["kept"][0]:
        micro = {way: statistics.median(found[sweep] for found in times[way]) for way in WAYS}
        ratios = [a[sweep] / b[sweep] for a, b in zip(times["kept"], times["made"], strict=True)]
        low, middle, high = quantiles(ratios)
        rows.append(
            {
                "part": "host", "list": name, "tensors": count, "optimizer": optimizer.__name__, "sweep": sweep,
                **{f"us_{way}": round(value, 1) for way, value in micro.items()}, "kept_to_made_20": round(low, 3),
                "kept_to_made_50": round(middle, 3), "kept_to_made_80": round(high, 3), "rounds": rounds,
            }
        )  # fmt: skip
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = parser_of(__doc__, rounds=60)
    parser.add_argument("--lists", nargs="+", choices=sorted(LISTS), default=list(LISTS), help="lists of tensors")
    options: argparse.Namespace = parser.parse_args(argv)
    around, rows = surroundings(torch.device("cpu")), []
    for name in options.lists:
        found = measure(name, options.rounds)
        print(f"\n{name}: {found[0]['tensors']} tensors, {found[0]['optimizer']}; us a step, median")
        print(f"  {'':<10}" + "".join(f"{way:>10}" for way in WAYS) + "   kept / made, 20th to 80th percentile")
        for row in found:
            cells = "".join(f"{row[f'us_{way}']:>10.0f}" for way in WAYS)
            print(f"  {row['sweep']:<10}{cells}   {row['kept_to_made_50']:.2f} ({row['kept_to_made_20']:.2f} - "
                  f"{row['kept_to_made_80']:.2f})")  # fmt: skip
        rows += [row | around for row in found]
    save(rows, options.output_dir, "host.csv")


if __name__ == "__main__":
    main()
