"""Run by test_ddp.py in two gloo processes (and in one, for comparison). Writes what each rank saw to OUT/rank.pt."""

import os
import sys
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from parts import BatchNormNet, Mlp, rows, weights_of
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback

from hf_sharp_unlearn import (
    ASAM,
    SAM,
    FineTune,
    Influence,
    L1Sparse,
    NegGradPlus,
    RandomLabel,
    SalUn,
    Scrub,
    SharpMinMax,
    UnlearningArguments,
    UnlearningTrainer,
    split_forget,
)
from hf_sharp_unlearn.runtime import distributed
from hf_sharp_unlearn.step import window

torch.set_num_threads(1)
warnings.simplefilter("ignore")

METHODS = {
    "neggrad": NegGradPlus(0.8),
    "neggrad_sam": NegGradPlus(0.8, SAM(0.2)),
    "neggrad_asam_retain": NegGradPlus(0.8, ASAM(0.5), "retain"),
    "ascent": NegGradPlus(0.0),
    "sharp_minmax": SharpMinMax(0.8, overlap=False),
    "sharp_minmax_overlap": SharpMinMax(0.8, overlap=True),
    "finetune_asam": FineTune(ASAM(0.5)),
    "random_label": RandomLabel(),
    "salun": SalUn(),
    "salun_sam": SalUn(SAM(0.2)),
    "l1_sparse": L1Sparse(0.01),
    "l1_sparse_sam": L1Sparse(0.01, sharpness=SAM(0.2)),
    "scrub": Scrub(msteps=1),
    "influence": Influence(damping=0.1, iterations=4),
    "influence_sam": Influence(damping=0.1, iterations=4, sharpness=SAM(0.2)),
}


class EveryStep(TrainerCallback):
    """A fingerprint of the weights after every step: bitwise, and the same on all ranks if nothing has drifted."""

    def __init__(self):
        self.sums = []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.sums.append([weight.detach().view(torch.int32).long().sum().item() for weight in model.parameters()])


def run(out, method, name, model=None, data=None, batch=4, data_collator=None, compute_loss_func=None, **arguments):
    forget, retain = split_forget(rows(40) if data is None else data, list(range(7)))
    args = UnlearningArguments(
        os.path.join(out, name),
        use_cpu=True,
        per_device_train_batch_size=batch // int(os.environ.get("WORLD_SIZE", 1)),
        report_to="none",
        disable_tqdm=True,
        **{"num_train_epochs": 2, "learning_rate": 0.1, "save_strategy": "no", "logging_strategy": "no", **arguments},
    )
    steps = EveryStep()
    trainer = UnlearningTrainer(
        Mlp() if model is None else model,
        args,
        method=method,
        forget_dataset=forget,
        retain_dataset=retain,
        callbacks=[steps],
        data_collator=data_collator,
        compute_loss_func=compute_loss_func,
    )
    return trainer, steps


class Bad:
    """A loss that turns to nan on the last process only, at its third call."""

    def __init__(self):
        self.calls = 0

    def __call__(self, outputs, inputs):
        self.calls += 1
        last = int(os.environ.get("RANK", 0)) == int(os.environ.get("WORLD_SIZE", 1)) - 1
        return outputs["loss"] * (float("nan") if last and self.calls == 3 else 1.0)


class Branch(torch.nn.Module):
    """Each process uses another layer, as layer drop and mixtures of experts may."""

    def __init__(self, rank: int):
        super().__init__()
        self.a, self.b, self.rank = Mlp(seed=1), Mlp(seed=2), rank

    def forward(self, x, labels=None):
        return (self.a if self.rank == 0 else self.b)(x, labels)


def padded(items):
    longest = max(len(item["input_ids"]) for item in items)
    fill = {"input_ids": 0, "labels": -100}
    return {
        name: torch.stack([torch.nn.functional.pad(i[name], (0, longest - len(i[name])), value=v) for i in items])
        for name, v in fill.items()
    }


def summed(outputs, labels, num_items_in_batch):
    return torch.nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch


def reduced_a_step(out, name, method):
    """Elements of gradients that go through our all-reduce in a step, in units of the model's size."""
    trainer, _ = run(out, method, f"reduced-{name}", max_steps=2)
    elements, reduce = [], distributed.all_reduce_mean

    def counting(tensors, processes):
        elements.append(sum(tensor.numel() for tensor in tensors if tensor is not None))
        reduce(tensors, processes)

    window.all_reduce_mean = counting
    trainer.train()
    window.all_reduce_mean = reduce
    return sum(elements) / sum(weight.numel() for weight in trainer.model.parameters()) / 2


def main(out: str) -> None:
    rank = int(os.environ.get("RANK", 0))
    results = {}
    for name, method in METHODS.items():
        for accumulation in (1, 2):
            for sync in (True, False) if method.perturbation is not None else (True,):
                key = f"{name}/{accumulation}/{'sync' if sync else 'local'}"
                trainer, steps = run(
                    out,
                    method,
                    key.replace("/", "-"),
                    gradient_accumulation_steps=accumulation,
                    sync_perturbation=sync,
                    logging_strategy="steps",
                    logging_steps=1,
                )
                trainer.train()
                logs = [{k: v for k, v in entry.items() if k.startswith("loss")} for entry in trainer.state.log_history]
                masks = trainer.partition.masks if trainer.partition else {}
                results[key] = {
                    "weights": weights_of(trainer.model),
                    "steps": steps.sums,
                    "logs": logs,
                    "masks": {n: m.clone() for n, m in masks.items()},
                }

    images = rows(40, shape=(1, 5, 5))
    trainer, steps = run(out, SharpMinMax(0.8, overlap=False), "bn", model=BatchNormNet(), data=images)
    trainer.train()
    results["batchnorm"] = {"weights": weights_of(trainer.model), "metrics": trainer.evaluate()}
    report = trainer.evaluate_unlearning(output_dir=os.path.join(out, "report"), svc_samples=0)
    results["report"] = None if report is None else report.to_dict()["metrics"]
    try:
        trainer.evaluate_unlearning(svc_samples=-1)
    except (ValueError, RuntimeError) as error:
        results["failed report"] = f"{type(error).__name__}: {error}"

    trainer, steps = run(out, SharpMinMax(0.8, overlap=False), "saved", save_strategy="steps", save_steps=9)
    trainer.train()
    again, _ = run(out, SharpMinMax(0.8, overlap=False), "saved")
    try:
        again.train(resume_from_checkpoint=os.path.join(out, "saved", "checkpoint-9"))
        results["resume"] = {"whole": weights_of(trainer.model), "resumed": weights_of(again.model)}
    except RuntimeError as error:  # transformers 5.17 loads the optimizer to "cpu:0", which torch does not know
        if "restore data location" not in str(error):
            raise
        results["resume"] = None

    for name, method in (("plain", NegGradPlus(0.8)), ("sam", NegGradPlus(0.8, SAM(0.2)))):
        trainer, steps = run(out, method, f"branch-{name}", model=Branch(rank), ddp_find_unused_parameters=True)
        trainer.train()
        results[f"branch-{name}"] = {"weights": weights_of(trainer.model), "steps": steps.sums}

    trainer, steps = run(out, NegGradPlus(0.8, SAM(0.2), retain_loss=Bad()), "bad")
    try:
        trainer.train()
    except FloatingPointError as error:
        results["bad"] = {"error": str(error), "weights": weights_of(trainer.model), "steps": len(steps.sums)}
    results["reduced"] = {name: reduced_a_step(out, name, METHODS[name]) for name in ("salun", "salun_sam", "neggrad")}
    flat = NegGradPlus(0.8, SAM(0.2), "retain"), SharpMinMax(0.8, None), SharpMinMax(0.8, overlap=True)
    results["reduced"] |= {f"flat {i}": reduced_a_step(out, f"flat-{i}", method) for i, method in enumerate(flat)}

    lengths = torch.randint(2, 9, (40,), generator=torch.Generator().manual_seed(5)).tolist()
    tokens = [{"input_ids": torch.arange(3, 3 + n), "labels": torch.arange(3, 3 + n)} for n in lengths]
    size = {"vocab_size": 16, "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 16}
    for name, model, data in (("classes", Mlp(), None), ("tokens", GPT2LMHeadModel(GPT2Config(**size)).eval(), tokens)):
        torch.manual_seed(0)
        for weight in model.parameters():
            weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
        collate = {"data_collator": padded} if data else {}
        trainer, _ = run(
            out, FineTune(), f"eval-{name}", model=model, data=data, per_device_eval_batch_size=4, **collate
        )
        results[f"eval {name}"] = {k: v for k, v in trainer.evaluate().items() if k.endswith(("loss", "accuracy"))}
    for accumulation in (1, 3):
        name = f"summed-{accumulation}"
        trainer, _ = run(out, FineTune(), name, gradient_accumulation_steps=accumulation, compute_loss_func=summed)
        trainer.train()
        results[name] = weights_of(trainer.model)
    results["total_batch_size"] = trainer.get_train_dataloader().total_batch_size
    torch.save(results, os.path.join(out, f"{rank}.pt"))


if __name__ == "__main__":
    main(sys.argv[1])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # gloo's threads must not outlive the interpreter
