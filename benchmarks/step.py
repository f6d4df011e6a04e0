"""Time of one optimizer step, as ratios from one run.

    trainer        transformers.Trainer on the same samples: one forward-backward over retain and forget together
    trainer_2      the same with gradient accumulation: two forward-backwards, of the sizes that NegGrad+ has
    neggrad        NegGrad+ on the same samples (two forward-backwards of half the size)
    neggrad_asam   NegGrad+ with ASAM: each stream forwarded twice
    sharp_minmax   Sharp MinMax: each stream forwarded twice, its own perturbation for each

Ratios: neggrad / trainer (aim 1.05), sharp_minmax / neggrad (2.0 by counting passes, aim 2.15). Variants are timed in
turn, in rounds, so that a change in the machine's speed meets all of them; reported are the median over rounds of the
ratio within a round, with the quartiles. The first round is a warm-up and is not counted.

    python benchmarks/step.py [--model resnet18] [--image 32] [--batch 32] [--steps 6] [--rounds 9]

Each run appends a row per ratio to benchmarks/results/step.csv.
"""

import argparse
import csv
import datetime
import os
import platform
import statistics
import tempfile
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import AutoModelForImageClassification, TimmWrapperConfig, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

import hf_sharp_unlearn as library
from hf_sharp_unlearn import ASAM, NegGradPlus, SharpMinMax, UnlearningArguments, UnlearningTrainer

RESULTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "results", "step.csv")
RATIOS = (("neggrad", "trainer"), ("neggrad", "trainer_2"), ("neggrad_asam", "neggrad"), ("sharp_minmax", "neggrad"))


class Noise(Dataset):
    """Images in memory: the loader costs the same for everyone and next to nothing."""

    def __init__(self, count: int, size: int, first: int = 0):
        generator = torch.Generator().manual_seed(first)
        self.pixels = torch.randn((count, 3, size, size), generator=generator)
        self.labels = torch.randint(10, (count,), generator=generator).tolist()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


class Clock(TrainerCallback):
    """Seconds of each optimizer step, loading included."""

    def __init__(self):
        self.times, self.last = [], None

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.last is not None:  # the first step of a run also starts the loader
            self.times.append(now - self.last)
        self.last = now


def build(options) -> torch.nn.Module:
    torch.manual_seed(0)
    config = TimmWrapperConfig(
        architecture=options.model,
        num_labels=10,
        pretrained_cfg={"input_size": [3, options.image, options.image], "mean": [0.5] * 3, "std": [0.5] * 3},
    )
    return AutoModelForImageClassification.from_config(config)


def step_times(variant: str, options, folder: str) -> list[float]:
    steps = options.steps + 1
    common = {
        "output_dir": folder,
        "max_steps": steps,
        "learning_rate": 1e-3,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    clock, model = Clock(), build(options)
    count = options.batch * steps
    retain, forget = Noise(count, options.image), Noise(count, options.image, 1)
    if variant.startswith("trainer"):
        parts = 2 if variant == "trainer_2" else 1
        args = TrainingArguments(
            **common,
            optim="sgd",
            optim_args="momentum=0.9",
            lr_scheduler_type="constant",
            per_device_train_batch_size=2 * options.batch // parts,
            gradient_accumulation_steps=parts,
        )
        union = torch.utils.data.ConcatDataset([retain, forget])
        trainer = Trainer(model, args, train_dataset=union, callbacks=[clock])
    else:
        method = {
            "neggrad": NegGradPlus(0.97),
            "neggrad_asam": NegGradPlus(0.97, ASAM(1.0)),
            "sharp_minmax": SharpMinMax(0.97, ASAM(1.0)),
        }[variant]
        args = UnlearningArguments(**common, per_device_train_batch_size=options.batch)
        trainer = UnlearningTrainer(
            model, args, method=method, forget_dataset=forget, retain_dataset=retain, callbacks=[clock]
        )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return clock.times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18", help="timm architecture")
    parser.add_argument("--image", type=int, default=32, help="pixels a side")
    parser.add_argument("--batch", type=int, default=32, help="samples a stream and step")
    parser.add_argument("--steps", type=int, default=6, help="timed steps a variant and round")
    parser.add_argument("--rounds", type=int, default=9, help="counted rounds")
    options = parser.parse_args()
    variants = sorted({name for pair in RATIOS for name in pair})
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in tqdm(range(options.rounds + 1), desc="rounds"):
            rounds.append({v: statistics.median(step_times(v, options, folder)) for v in variants})
    rounds = rounds[1:]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    parameters = sum(weight.numel() for weight in build(options).parameters())
    print(
        f"{options.model}, {parameters / 1e6:.1f} M parameters, {options.image} px, {options.batch} + {options.batch}"
    )
    print(f"{device}; torch {torch.__version__}, transformers {transformers.__version__}; {options.rounds} rounds")
    for v in variants:
        print(f"  {v:<13} {1e3 * statistics.median(r[v] for r in rounds):8.1f} ms a step")
    rows = []
    for above, below in RATIOS:
        ratios = [r[above] / r[below] for r in rounds]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        print(f"  {above} / {below}: {middle:.3f} (quartiles {low:.3f} - {high:.3f})")
        rows.append(
            {
                "date": datetime.date.today().isoformat(),
                "version": library.__version__,
                "ratio": f"{above}/{below}",
                "median": f"{middle:.4f}",
                "quartile_low": f"{low:.4f}",
                "quartile_high": f"{high:.4f}",
                "rounds": options.rounds,
                "steps": options.steps,
                "model": options.model,
                "parameters": parameters,
                "image": options.image,
                "batch": options.batch,
                "device": device,
                "machine": platform.machine(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            }
        )
    os.makedirs(os.path.dirname(RESULTS), exist_ok=True)
    new = not os.path.exists(RESULTS)
    with open(RESULTS, "a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        if new:
            writer.writeheader()
        writer.writerows(rows)
    print(f"appended to {os.path.relpath(RESULTS)}")


if __name__ == "__main__":
    main()
