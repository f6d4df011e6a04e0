"""What does the kernel part of a Sharp MinMax step cost, fused and unfused?

    sharp-unlearn benchmark --part kernels --shapes resnet50 llama-1b odd
    python benchmarks/kernel_part.py --shapes odd                  the same in a checkout

Norms, two perturbations, the weights back, compose, clip and SGD with momentum, done by every provider on the same
tensors, in rounds; the copy bandwidth that byte rates are compared with is measured in the same run. Rows are appended
to kernels.csv, and a plot is drawn beside it.
"""

import argparse
import os
from collections.abc import Iterable

import torch

from hf_sharp_unlearn.analysis import new_figure
from hf_sharp_unlearn.benchmarks.parts.clocks import Clock, copy_bandwidth
from hf_sharp_unlearn.benchmarks.parts.options import parser_of, results_folder
from hf_sharp_unlearn.benchmarks.parts.providers import PROVIDERS, Library, Tensors, make, names_for
from hf_sharp_unlearn.benchmarks.parts.rows import quantiles, save, surroundings
from hf_sharp_unlearn.benchmarks.parts.shapes import SHAPES, Shapes
from hf_sharp_unlearn.benchmarks.parts.traffic import Traffic
from hf_sharp_unlearn.kernels import metered
from hf_sharp_unlearn.runtime import progress_bar


def add_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the kernel part runs")
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=None,
                        help="lists of tensors; default: all on a GPU, resnet50 and odd on a CPU")  # fmt: skip
    parser.add_argument("--providers", nargs="+", choices=PROVIDERS, default=None,
                        help="ways to do it; default: all that run here")  # fmt: skip


def measure(shape: str, device: torch.device, names: list[str], rounds: int) -> list[dict]:
    """One row a provider, without and with clipping. What cannot run here is left out, and its reason printed.

    All run in turn, round by round, on the same tensors. `compiled` comes when the others are done: the threads of its
    code spin on a CPU's cores.
    """
    shapes = SHAPES[shape]()
    tensors = Tensors.make(shapes, device)
    parameters = sum(w.numel() for w in tensors.w)
    variants = [(n, clip) for clip in (False, True) for n in names if not (clip and n.endswith("one_sweep"))]
    costs, times, clock = {}, {}, Clock(device)
    for last in (False, True):
        providers = {}
        for name, clip in variants:
            if (name == "compiled") is not last:
                continue
            try:
                provider = make(name, tensors, clip)
                provider.run()  # compiles
                costs[name, clip] = cost(name, provider, device)
                agree(name, clip, shapes if parameters < 1e8 else shapes[-20:], device)
            except Exception as error:
                print(f"{name} is left out: {type(error).__name__}: {str(error).splitlines()[0][:150]}")
                continue
            providers[name, clip], times[name, clip] = provider, []
        for turn in progress_bar(range(rounds + 1), desc=shape, leave=False, disable=not providers):
            for key, provider in providers.items():
                elapsed = clock(provider.run)
                if turn:  # the first round is a warm-up
                    times[key].append(elapsed)
    bandwidth = copy_bandwidth(device, rounds, 256 if device.type == "cpu" else 2048)
    return [
        {
            "part": "kernels",
            "shape": shape,
            "tensors": len(shapes),
            "parameters": parameters,
            "clipping": clip,
            "provider": name,
            **figures(times[name, clip], costs[name, clip]["bytes"], parameters, bandwidth),
            **{key: costs[name, clip][key] for key in ("launches", "counted", "peak_mib")},
            "rounds": rounds,
        }
        for name, clip in variants
        if (name, clip) in times
    ]


def figures(times: list[float], moved: int, parameters: int, bandwidth: float) -> dict:
    """Milliseconds, bytes and rates of a row. moved: bytes of one step; 0: not counted."""
    low, middle, high = quantiles(times)
    return {
        "ms_20": round(low, 3),
        "ms_50": round(middle, 3),
        "ms_80": round(high, 3),
        "bytes_a_parameter": round(moved / parameters, 1) if moved else "",
        "gb_per_s": round(moved / middle / 1e6, 1) if moved else "",
        "copy_gb_per_s": round(bandwidth, 1),
        "share_of_copy": round(moved / middle / 1e6 / bandwidth, 3) if moved else "",
    }


def agree(name: str, clip: bool, shapes: Shapes, device: torch.device) -> None:
    """A provider must make the step that the reference makes before it is timed."""
    if name == "compiled":
        return  # it would compile once more; the tests compare it
    ends = []
    for provider in ("reference", name):
        step = make(provider, Tensors.make(shapes, device), clip)
        step.run()
        ends.append(step.weights)
    for i, (a, b) in enumerate(zip(*ends, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, msg=lambda m, k=i: f"tensor {k}: {m}")


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
        return {"bytes": 0, "launches": "", "counted": "", "peak_mib": peak}
    if isinstance(provider, Library) and name != "reference":
        with metered() as meter:
            provider.run()
        return {"bytes": meter.bytes, "launches": meter.launches or "", "counted": "sweeps", "peak_mib": peak}
    with Traffic() as traffic:
        provider.run()
    return {"bytes": traffic.bytes, "launches": traffic.calls, "counted": "torch operations", "peak_mib": peak}


def show(rows: list[dict]) -> None:
    """Print the rows of one list of shapes, without clipping and with it."""
    for clip in (False, True):
        mine = [row for row in rows if row["clipping"] is clip]
        if not mine:
            continue
        print(f"\n{mine[0]['shape']}{', clipping' if clip else ''}: {mine[0]['tensors']} tensors, "
              f"{mine[0]['parameters'] / 1e6:.1f} M parameters, copy {mine[0]['copy_gb_per_s']} GB/s")  # fmt: skip
        slowest = next((row["ms_50"] for row in mine if row["provider"] == "per_tensor"), None)
        for row in mine:
            ratio = f"{slowest / row['ms_50']:5.2f}x per_tensor" if slowest else ""
            moved = f"{row['bytes_a_parameter'] or '?':>6} B/param {row['launches'] or '-':>5} {row['counted']}"
            times = f"{row['ms_50']:9.3f} ms ({row['ms_20']:.3f} - {row['ms_80']:.3f})"
            print(f"  {row['provider']:<16} {times} {ratio}  {moved}")


def not_measured(columns: Iterable[str], around: dict) -> list[dict]:
    """Rows that say what no machine here has shown: Triton on each list of shapes."""
    row = dict.fromkeys(columns, "") | around | {"part": "kernels", "provider": "triton", "device": "GPU"}
    row |= dict.fromkeys(("ms_20", "ms_50", "ms_80"), "not measured")
    return [{**row, "shape": shape} for shape in SHAPES]


def draw(rows: list[dict], path: str) -> None:
    """Bars of the kernel part's time, one panel a shape; whiskers from the 20th to the 80th percentile."""
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    figure = new_figure(5 * len(shapes), 3.6)
    axes = figure.subplots(1, len(shapes), squeeze=False)[0]
    for axis, shape in zip(axes, shapes, strict=True):
        names = list(dict.fromkeys(row["provider"] for row in rows if row["shape"] == shape))
        for k, clip in enumerate((False, True)):
            mine = {r["provider"]: r for r in rows if r["shape"] == shape and r["clipping"] is clip}
            places = [i + (k - 0.5) * 0.38 for i, name in enumerate(names) if name in mine]
            found = [mine[name] for name in names if name in mine]
            middle = [r["ms_50"] for r in found]
            around = [[m - r["ms_20"] for m, r in zip(middle, found, strict=True)],
                      [r["ms_80"] - m for m, r in zip(middle, found, strict=True)]]  # fmt: skip
            axis.barh(places, middle, 0.36, xerr=around, color=("#4c72b0", "#dd8452")[k],
                      label="clipped to norm 1" if clip else "no clipping", error_kw={"lw": 0.8})  # fmt: skip
        first = next(r for r in rows if r["shape"] == shape)
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.set_xlabel("ms, median and 20th to 80th percentile")
        axis.set_title(
            f"{shape}: {first['tensors']} tensors, {first['parameters'] / 1e6:.1f} M parameters", fontsize=10
        )
    axes[0].legend(fontsize=8, loc="lower right")
    first = rows[0]
    figure.suptitle(f"Kernel part of a Sharp MinMax step\n{first['device']}, torch {first['torch']}", fontsize=11)
    figure.savefig(path, dpi=110)
    print(f"drawn: {os.path.relpath(path)}")


def run(options: argparse.Namespace) -> None:
    gpu = torch.cuda.is_available()
    device = torch.device(options.device if options.device != "auto" else "cuda" if gpu else "cpu")
    if device.type == "cuda" and not gpu:
        raise ValueError("--device cuda: torch sees no GPU. Use --device cpu.")
    around = surroundings(device)
    print(", ".join(f"{name} {value}" for name, value in around.items() if value))
    names, rows = options.providers or names_for(device), []
    for shape in options.shapes or (SHAPES if device.type == "cuda" else ("resnet50", "odd")):
        found = [row | around for row in measure(shape, device, names, options.rounds)]
        show(found)
        rows += found
    if not rows:
        raise ValueError(f"--providers {' '.join(names)}: none of them can run here.")
    missing = []
    if device.type == "cpu" and not options.providers:
        missing = not_measured(rows[0], around)
        print("\ntriton: not measured, there is no GPU here; run the same command on a machine with one")
    save(rows + missing, options.output_dir, "kernels.csv")
    draw(rows, os.path.join(results_folder(options.output_dir), f"kernels_{device.type}.png"))


def main(argv: list[str] | None = None) -> None:
    parser = parser_of(__doc__, rounds=9)
    add_options(parser)
    run(parser.parse_args(argv))


if __name__ == "__main__":
    main()
