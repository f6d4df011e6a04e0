"""What a Sharp MinMax step costs: its kernel part, fused and unfused, and whole training steps.

    sharp-unlearn benchmark                    both parts, on the GPU if there is one: about 15 minutes on 2 CPU cores
    sharp-unlearn benchmark --part kernels --shapes resnet50 llama-1b odd
    python benchmarks/step.py --part training --models resnet18 --batch 128

Rows are appended to kernels.csv and training.csv in the output folder, and a plot of the kernel part is drawn there.
Everything in a row comes from one run: ratios, and the copy bandwidth that byte rates are compared with.
"""

import argparse
import csv
import datetime
import os
import platform
import subprocess

import torch
import transformers

import hf_sharp_unlearn
from hf_sharp_unlearn.benchmarks import kernel_part, providers
from hf_sharp_unlearn.benchmarks.shapes import SHAPES

HERE = os.path.dirname(os.path.abspath(__file__))


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number >= 1")
    return value


def add_options(parser: argparse.ArgumentParser) -> None:
    kernels, training = parser.add_argument_group("kernel part"), parser.add_argument_group("training steps")
    parser.add_argument("--part", choices=("all", "kernels", "training"), default="all", help="what to time")
    parser.add_argument("--rounds", type=positive, default=9, help="counted rounds; all variants run in each")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the kernel part runs")
    parser.add_argument("--output-dir", default=None, help="folder of the results (benchmarks/results in a checkout)")
    kernels.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=None,
                         help="lists of tensors; default: all on a GPU, resnet50 and odd on a CPU")  # fmt: skip
    kernels.add_argument("--providers", nargs="+", choices=providers.PROVIDERS, default=None,
                         help="ways to do it; default: all that run here")  # fmt: skip
    training.add_argument("--models", nargs="+", default=["resnet50", "llama-small"],
                          help="llama-small, or timm architectures")  # fmt: skip
    training.add_argument("--batch", type=positive, default=32, help="samples a stream and step")
    training.add_argument("--size", type=positive, default=None, help="pixels a side (32) or tokens a sample (64)")
    training.add_argument("--steps", type=positive, default=4, help="timed steps a variant and round")


def surroundings(device: torch.device) -> dict:
    """What a row says of the machine and the versions."""
    gpu = device.type == "cuda"
    try:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
        commit = commit.stdout.strip() if commit.returncode == 0 else ""
    except OSError:
        commit = ""
    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = ""
    return {
        "device": torch.cuda.get_device_name(device) if gpu else f"CPU, {torch.get_num_threads()} threads",
        "machine": platform.machine(),
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "version": hf_sharp_unlearn.__version__,
        "torch": torch.__version__,
        "triton": version,
        "transformers": transformers.__version__,
    }


def append(path: str, rows: list[dict]) -> None:
    new = not os.path.exists(path)
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        if new:
            writer.writeheader()
        writer.writerows(rows)
    print(f"appended to {os.path.relpath(path)}")


def time_kernels(options, device: torch.device, folder: str, around: dict) -> None:
    shapes = options.shapes or (list(SHAPES) if device.type == "cuda" else ["resnet50", "odd"])
    names = options.providers or providers.names_for(device)
    rows = []
    for shape in shapes:
        found = kernel_part.measure(shape, device, names, options.rounds)
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


def time_training(options, folder: str, around: dict) -> None:
    from hf_sharp_unlearn.benchmarks import training

    rows = []
    for model in options.models:
        size = options.size or (64 if model == "llama-small" else 32)
        found = training.measure(model, size, options.batch, options.steps, options.rounds)
        rows += [row | around for row in found]
        print(f"\n{model}: {found[0]['parameters'] / 1e6:.1f} M parameters, {options.batch} + {options.batch} samples")
        for row in found:
            print(f"  {row['ratio']:<38} {row['ratio_50']:.3f} ({row['ratio_20']:.3f} - {row['ratio_80']:.3f})   "
                  f"{row['ms_above']:.0f} / {row['ms_below']:.0f} ms")  # fmt: skip
    append(os.path.join(folder, "training.csv"), rows)


def run(options: argparse.Namespace) -> None:
    gpu = torch.cuda.is_available()
    device = torch.device(options.device if options.device != "auto" else "cuda" if gpu else "cpu")
    if device.type == "cuda" and not gpu:
        raise ValueError("--device cuda: torch sees no GPU. Use --device cpu.")
    here = os.path.join(HERE, "results")
    folder = options.output_dir or (here if os.path.isdir(here) else "benchmark_output")
    os.makedirs(folder, exist_ok=True)
    around = surroundings(device)
    print(", ".join(f"{name} {value}" for name, value in around.items() if value))
    if options.part != "training":
        time_kernels(options, device, folder, around)
    if options.part != "kernels":
        time_training(options, folder, around)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(arguments)
    run(arguments.parse_args())
