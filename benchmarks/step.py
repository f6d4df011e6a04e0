"""What does a Sharp MinMax step cost: its kernel part, and as a whole? The command of `kernel_part` and `training`.

    sharp-unlearn benchmark                    both parts, on the GPU if there is one: about 15 minutes on 2 CPU cores
    sharp-unlearn benchmark --part kernels --shapes resnet50 llama-1b odd
    python benchmarks/step.py --part training --models resnet18 --batch 128

Everything in a row comes from one run: ratios, and the copy bandwidth that byte rates are compared with.
"""

import argparse

import torch

from hf_sharp_unlearn.benchmarks.kernel_part import time_kernels
from hf_sharp_unlearn.benchmarks.parts.providers import PROVIDERS
from hf_sharp_unlearn.benchmarks.parts.rows import positive, results_folder, surroundings
from hf_sharp_unlearn.benchmarks.parts.shapes import SHAPES
from hf_sharp_unlearn.benchmarks.training import time_training


def add_options(parser: argparse.ArgumentParser) -> None:
    kernels, training = parser.add_argument_group("kernel part"), parser.add_argument_group("training steps")
    parser.add_argument("--part", choices=("all", "kernels", "training"), default="all", help="what to time")
    parser.add_argument("--rounds", type=positive, default=9, help="counted rounds; all variants run in each")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the kernel part runs")
    parser.add_argument("--output-dir", default=None, help="folder of the results (benchmarks/results in a checkout)")
    kernels.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), default=None,
                         help="lists of tensors; default: all on a GPU, resnet50 and odd on a CPU")  # fmt: skip
    kernels.add_argument("--providers", nargs="+", choices=PROVIDERS, default=None,
                         help="ways to do it; default: all that run here")  # fmt: skip
    training.add_argument("--models", nargs="+", default=["resnet50", "llama-small"],
                          help="llama-small, or timm architectures")  # fmt: skip
    training.add_argument("--batch", type=positive, default=32, help="samples a stream and step")
    training.add_argument("--size", type=positive, default=None, help="pixels a side (32) or tokens a sample (64)")
    training.add_argument("--steps", type=positive, default=4, help="timed steps a variant and round")


def run(options: argparse.Namespace) -> None:
    gpu = torch.cuda.is_available()
    device = torch.device(options.device if options.device != "auto" else "cuda" if gpu else "cpu")
    if device.type == "cuda" and not gpu:
        raise ValueError("--device cuda: torch sees no GPU. Use --device cpu.")
    folder = results_folder(options.output_dir)
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
