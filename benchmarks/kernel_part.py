"""What does the kernel part of a Sharp MinMax step cost, fused and unfused?

    sharp-unlearn benchmark --part kernels --shapes resnet50 llama-1b odd

Norms, two perturbations, the weights back, compose, clip and SGD with momentum, done by every provider on the same
tensors, in rounds; the copy bandwidth that byte rates are compared with is measured in the same run. Rows are appended
to kernels.csv, and a plot is drawn beside it.
"""

import os

import torch
from tqdm.auto import tqdm

from hf_sharp_unlearn.benchmarks.parts.clocks import Clock, Traffic, copy_bandwidth
from hf_sharp_unlearn.benchmarks.parts.providers import Data, Library, make, names_for
from hf_sharp_unlearn.benchmarks.parts.rows import append, quantiles
from hf_sharp_unlearn.benchmarks.parts.shapes import SHAPES
from hf_sharp_unlearn.kernels import metered


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


def time_kernels(options, device: torch.device, folder: str, around: dict) -> None:
    shapes = options.shapes or (list(SHAPES) if device.type == "cuda" else ["resnet50", "odd"])
    names = options.providers or names_for(device)
    rows = []
    for shape in shapes:
        found = measure(shape, device, names, options.rounds)
        rows += [row | around for row in found]
        for clip in (False, True):
            mine = [row for row in found if row["clipping"] is clip]
            if not mine:
                continue
            print(f"\n{shape}{', clipping' if clip else ''}: {mine[0]['tensors']} tensors, "
                  f"{mine[0]['parameters'] / 1e6:.1f} M parameters, copy {mine[0]['copy_gb_per_s']} GB/s")  # fmt: skip
            slowest = next((r["ms_50"] for r in mine if r["provider"] == "per_tensor"), None)
            for row in mine:
                ratio = f"{slowest / row['ms_50']:5.2f}x per_tensor" if slowest else ""
                cost = f"{row['bytes_a_parameter'] or '?':>6} B/param {row['launches'] or '-':>5} {row['counted']}"
                times = f"{row['ms_50']:9.3f} ms ({row['ms_20']:.3f} - {row['ms_80']:.3f})"
                print(f"  {row['provider']:<16} {times} {ratio}  {cost}")
    missing = []
    if device.type == "cpu" and not options.providers:  # the file says what no machine here has shown
        for name in SHAPES:
            missing.append(
                dict.fromkeys(rows[0], "") | around | {"part": "kernels", "shape": name, "provider": "triton"}
            )
            missing[-1] |= {"device": "GPU", **dict.fromkeys(("ms_20", "ms_50", "ms_80"), "not measured")}
        print("\ntriton: not measured, there is no GPU here; run the same command on a machine with one")
    if not rows:
        raise ValueError(f"--providers {' '.join(names)}: none of them can run here.")
    append(os.path.join(folder, "kernels.csv"), rows + missing)
    draw(rows, os.path.join(folder, f"kernels_{device.type}.png"))


def draw(rows: list[dict], path: str) -> None:
    """Bars of the kernel part's time, one panel a shape; whiskers from the 20th to the 80th percentile."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    figure, axes = plt.subplots(1, len(shapes), figsize=(5 * len(shapes), 3.6), squeeze=False, layout="constrained")
    for axis, shape in zip(axes[0], shapes, strict=True):
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
    axes[0][0].legend(fontsize=8, loc="lower right")
    first = rows[0]
    figure.suptitle(f"Kernel part of a Sharp MinMax step, {first['device']}, torch {first['torch']}", fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"drawn: {os.path.relpath(path)}")
