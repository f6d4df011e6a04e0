"""Trainers whose steps are compared, and image models from their configs. What a name stands for:

trainer                  transformers.Trainer on the union of both streams, in one batch
trainer_2                the same in two micro-batches, of the sizes that NegGrad+ has
neggrad                  NegGrad+: two forward-backwards
neggrad_asam             NegGrad+ with ASAM: four
sharp_minmax             Sharp MinMax (paper semantics, ASAM): four, with the library's kernels and one-sweep SGD
sharp_minmax_unfused     the same with the reference kernels and torch's SGD, as it comes
sharp_minmax_foreach     the same with torch's multi-tensor functions (`foreach_backend`), and SGD(foreach=True)
sharp_minmax_per_tensor  the same with the reference kernels, tensor by tensor, and SGD(foreach=False)
"""

from typing import Any

import torch
from torch import nn
from torch.utils.data import ConcatDataset, Dataset
from transformers import AutoModelForImageClassification, TimmWrapperConfig, Trainer, TrainingArguments

from hf_sharp_unlearn import ASAM, NegGradPlus, SharpMinMax, UnlearningArguments, UnlearningTrainer

SHARP_MINMAX = SharpMinMax(0.97, ASAM(1.0), overlap=False)
METHODS = {
    "neggrad": NegGradPlus(0.97),
    "neggrad_asam": NegGradPlus(0.97, ASAM(1.0)),
    "sharp_minmax": SHARP_MINMAX,
    "sharp_minmax_unfused": SHARP_MINMAX,
    "sharp_minmax_foreach": SHARP_MINMAX,
    "sharp_minmax_per_tensor": SHARP_MINMAX,
}
# variant -> (kernel_backend, `foreach` of torch's SGD); others run on "auto" with the library's optimizer
UNFUSED = {
    "sharp_minmax_unfused": ("reference", None),
    "sharp_minmax_foreach": ("foreach", True),
    "sharp_minmax_per_tensor": ("reference", False),
}


def image_model(architecture: str, size: int, **model_args) -> nn.Module:
    """A timm architecture for 10 classes of `size` pixels a side. model_args: what timm's model takes."""
    config = TimmWrapperConfig(
        architecture=architecture,
        num_labels=10,
        pretrained_cfg={"input_size": [3, size, size], "mean": [0.5] * 3, "std": [0.5] * 3},
        model_args=model_args or None,
    )
    return AutoModelForImageClassification.from_config(config)


def quiet(folder: str, steps: int, **more: Any) -> dict[str, Any]:
    """TrainingArguments of a run of `steps` steps that says and keeps nothing. more: others, which win."""
    return {
        "output_dir": folder,
        "max_steps": steps,
        "learning_rate": 1e-3,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **more,
    }


def trainer_of(variant: str, network: nn.Module, retain: Dataset, forget: Dataset, batch: int, common: dict) -> Trainer:
    """batch: samples a stream and step. common: arguments that all variants share.

    "sharp_minmax_foreach" needs `foreach_backend.registered()` around it and its run.
    """
    if variant in METHODS:
        backend, foreach = UNFUSED.get(variant, ("auto", None))
        optimizer = None
        if variant in UNFUSED:
            rate = common["learning_rate"]
            optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9, foreach=foreach)
        args = UnlearningArguments(**common, per_device_train_batch_size=batch, kernel_backend=backend)
        return UnlearningTrainer(
            network,
            args,
            method=METHODS[variant],
            forget_dataset=forget,
            retain_dataset=retain,
            optimizers=(optimizer, None),
        )
    parts = 2 if variant == "trainer_2" else 1
    args = TrainingArguments(
        **common,
        optim="sgd",
        optim_args="momentum=0.9",
        lr_scheduler_type="constant",
        per_device_train_batch_size=2 * batch // parts,
        gradient_accumulation_steps=parts,
    )
    return Trainer(network, args, train_dataset=ConcatDataset([retain, forget]))
