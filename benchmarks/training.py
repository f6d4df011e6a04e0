"""What does a whole training step cost: trainer, data loading and all, as ratios within one run?

    sharp-unlearn benchmark --part training --models resnet18 --batch 128
    python benchmarks/training.py --models resnet18 --batch 128        the same in a checkout

trainer               transformers.Trainer on the union of both streams, in one batch
trainer_2             the same in two micro-batches, of the sizes that NegGrad+ has
neggrad               NegGrad+: two forward-backwards
neggrad_asam          NegGrad+ with ASAM: four
sharp_minmax          Sharp MinMax (paper semantics, ASAM): four, with the library's kernels and one-sweep SGD
sharp_minmax_unfused  the same with the reference kernels and torch's SGD

Rows are appended to training.csv.
"""

import argparse
import statistics
import tempfile
import time

import torch
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, LlamaConfig, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from hf_sharp_unlearn.benchmarks.parts.options import parser_of, positive
from hf_sharp_unlearn.benchmarks.parts.rows import quantiles, save, surroundings
from hf_sharp_unlearn.benchmarks.parts.trainers import image_model, quiet, trainer_of
from hf_sharp_unlearn.runtime import progress_bar

RATIOS = (
    ("neggrad", "trainer"),
    ("neggrad", "trainer_2"),
    ("neggrad_asam", "neggrad"),
    ("sharp_minmax", "neggrad"),
    ("sharp_minmax_unfused", "neggrad"),
    ("sharp_minmax_unfused", "sharp_minmax"),
)
LLAMA = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 8192, "max_position_embeddings": 512}  # fmt: skip


class Noise(Dataset):
    """Samples in memory: the loader costs the same for everyone and next to nothing.

    size: pixels a side, or tokens.
    """

    def __init__(self, count: int, size: int, words: bool, seed: int):
        generator = torch.Generator().manual_seed(seed)
        if words:
            tokens = torch.randint(LLAMA["vocab_size"], (count, size), generator=generator)
            self.rows = [{"input_ids": row, "labels": row} for row in tokens]
        else:
            pixels = torch.randn((count, 3, size, size), generator=generator)
            labels = torch.randint(10, (count,), generator=generator).tolist()
            self.rows = [{"pixel_values": x, "labels": y} for x, y in zip(pixels, labels, strict=True)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class StepTimes(TrainerCallback):
    """Milliseconds of each optimizer step, loading included."""

    def __init__(self):
        self.milliseconds, self.last = [], None

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.last is not None:  # the first step of a run also starts the loader
            self.milliseconds.append(1e3 * (now - self.last))
        self.last = now


def build(model: str, size: int) -> torch.nn.Module:
    """A small Llama, or a timm architecture by name; from its config."""
    torch.manual_seed(0)
    if model == "llama-small":
        return AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA))
    return image_model(model, size)


def step_times(variant: str, model: str, size: int, batch: int, steps: int, folder: str) -> list[float]:
    """Milliseconds of each step of a run."""
    network = build(model, size)
    retain, forget = (Noise(batch * (steps + 1), size, model == "llama-small", seed) for seed in (0, 1))
    trainer = trainer_of(variant, network, retain, forget, batch, quiet(folder, steps + 1))
    times = StepTimes()
    trainer.add_callback(times)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return times.milliseconds


def measure(model: str, size: int, batch: int, steps: int, rounds: int) -> list[dict]:
    """One row a ratio: its 20th, 50th and 80th percentile over rounds, each a ratio of medians within the round."""
    variants = sorted({name for pair in RATIOS for name in pair})
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in progress_bar(range(rounds + 1), desc=f"{model}, {batch} + {batch}", leave=False):
            found.append({v: statistics.median(step_times(v, model, size, batch, steps, folder)) for v in variants})
    found = found[1:]  # the first round is a warm-up
    parameters = sum(weight.numel() for weight in build(model, size).parameters())
    rows = []
    for above, below in RATIOS:
        low, middle, high = quantiles([r[above] / r[below] for r in found])
        rows.append(
            {
                "part": "training",
                "model": model,
                "parameters": parameters,
                "size": size,
                "batch": batch,
                "ratio": f"{above} / {below}",
                "ratio_20": round(low, 3),
                "ratio_50": round(middle, 3),
                "ratio_80": round(high, 3),
                "ms_above": round(statistics.median(r[above] for r in found), 1),
                "ms_below": round(statistics.median(r[below] for r in found), 1),
                "steps": steps,
                "rounds": rounds,
            }
        )
    return rows


def add_options(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--models", nargs="+", default=["resnet50", "llama-small"],
                        help="llama-small, or timm architectures")  # fmt: skip
    parser.add_argument("--batch", type=positive, default=32, help="samples a stream and step")
    parser.add_argument("--size", type=positive, default=None, help="pixels a side (32) or tokens a sample (64)")
    parser.add_argument("--steps", type=positive, default=4, help="timed steps a variant and round")


def run(options: argparse.Namespace) -> None:
    around = surroundings(torch.device("cuda" if torch.cuda.is_available() else "cpu"))  # where Trainer works
    print(", ".join(f"{name} {value}" for name, value in around.items() if value))
    rows = []
    for model in options.models:
        size = options.size or (64 if model == "llama-small" else 32)
        found = measure(model, size, options.batch, options.steps, options.rounds)
        rows += [row | around for row in found]
        print(f"\n{model}: {found[0]['parameters'] / 1e6:.1f} M parameters, {options.batch} + {options.batch} samples")
        for row in found:
            print(f"  {row['ratio']:<38} {row['ratio_50']:.3f} ({row['ratio_20']:.3f} - {row['ratio_80']:.3f})   "
                  f"{row['ms_above']:.0f} / {row['ms_below']:.0f} ms")  # fmt: skip
    save(rows, options.output_dir, "training.csv")


def main(argv: list[str] | None = None) -> None:
    parser = parser_of(__doc__, rounds=9)
    add_options(parser)
    run(parser.parse_args(argv))


if __name__ == "__main__":
    main()
