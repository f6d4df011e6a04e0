"""What does a whole training step cost: trainer, data loading and all, as ratios within one run?

    sharp-unlearn benchmark --part training --models resnet18 --batch 128

trainer               transformers.Trainer on the union of both streams, in one batch
trainer_2             the same in two micro-batches, of the sizes that NegGrad+ has
neggrad               NegGrad+: two forward-backwards
neggrad_asam          NegGrad+ with ASAM: four
sharp_minmax          Sharp MinMax (paper semantics, ASAM): four, with the library's kernels and one-sweep SGD
sharp_minmax_unfused  the same with the reference kernels and torch's SGD
"""

import os
import statistics
import tempfile
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch.utils.data import ConcatDataset, Dataset
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    LlamaConfig,
    TimmWrapperConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from hf_sharp_unlearn import ASAM, NegGradPlus, SharpMinMax, UnlearningArguments, UnlearningTrainer
from hf_sharp_unlearn.benchmarks.parts.rows import append, quantiles

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
    """Samples in memory: the loader costs the same for everyone and next to nothing."""

    def __init__(self, count: int, size: int, words: bool, first: int = 0):
        generator = torch.Generator().manual_seed(first)
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


class Clock(TrainerCallback):
    """Milliseconds of each optimizer step, loading included."""

    def __init__(self):
        self.times, self.last = [], None

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.last is not None:  # the first step of a run also starts the loader
            self.times.append(1e3 * (now - self.last))
        self.last = now


def build(model: str, size: int) -> torch.nn.Module:
    """A small Llama, or a timm architecture by name; from its config."""
    torch.manual_seed(0)
    if model == "llama-small":
        return AutoModelForCausalLM.from_config(LlamaConfig(**LLAMA))
    statistics_of_pixels = {"mean": [0.5] * 3, "std": [0.5] * 3}
    config = TimmWrapperConfig(
        architecture=model, num_labels=10, pretrained_cfg={"input_size": [3, size, size], **statistics_of_pixels}
    )
    return AutoModelForImageClassification.from_config(config)


def step_times(variant: str, model: str, size: int, batch: int, steps: int, folder: str) -> list[float]:
    words = model == "llama-small"
    common = {
        "output_dir": folder,
        "max_steps": steps + 1,
        "learning_rate": 1e-3,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    clock, network = Clock(), build(model, size)
    retain, forget = (Noise(batch * (steps + 1), size, words, seed) for seed in (0, 1))
    if variant.startswith("trainer"):
        parts = 2 if variant == "trainer_2" else 1
        args = TrainingArguments(
            **common,
            optim="sgd",
            optim_args="momentum=0.9",
            lr_scheduler_type="constant",
            per_device_train_batch_size=2 * batch // parts,
            gradient_accumulation_steps=parts,
        )
        trainer = Trainer(network, args, train_dataset=ConcatDataset([retain, forget]), callbacks=[clock])
    else:
        method = {"neggrad": NegGradPlus(0.97), "neggrad_asam": NegGradPlus(0.97, ASAM(1.0))}
        unfused = variant.endswith("_unfused")
        torchs = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9) if unfused else None
        trainer = UnlearningTrainer(
            network,
            UnlearningArguments(
                **common, per_device_train_batch_size=batch, kernel_backend="reference" if unfused else "auto"
            ),
            method=method.get(variant, SharpMinMax(0.97, ASAM(1.0), overlap=False)),
            forget_dataset=forget,
            retain_dataset=retain,
            callbacks=[clock],
            optimizers=(torchs, None),
        )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return clock.times


def measure(model: str, size: int, batch: int, steps: int, rounds: int) -> list[dict]:
    """One row a ratio: its 20th, 50th and 80th percentile over rounds, each a ratio of medians within the round."""
    variants = sorted({name for pair in RATIOS for name in pair})
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in tqdm(range(rounds + 1), desc=f"{model}, {batch} + {batch}", leave=False):
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


def time_training(options, folder: str, around: dict) -> None:
    rows = []
    for model in options.models:
        size = options.size or (64 if model == "llama-small" else 32)
        found = measure(model, size, options.batch, options.steps, options.rounds)
        rows += [row | around for row in found]
        print(f"\n{model}: {found[0]['parameters'] / 1e6:.1f} M parameters, {options.batch} + {options.batch} samples")
        for row in found:
            print(f"  {row['ratio']:<38} {row['ratio_50']:.3f} ({row['ratio_20']:.3f} - {row['ratio_80']:.3f})   "
                  f"{row['ms_above']:.0f} / {row['ms_below']:.0f} ms")  # fmt: skip
    append(os.path.join(folder, "training.csv"), rows)
