"""A short fine-tuning run on a copy of a model, as attacks and proxies need it.

A plain loop and not a Trainer: it must leave the process as it was, also inside a distributed run, and many of them may
run one after another.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import default_data_collator

from ..data import targets_of
from ..losses import counted_items, logits_of
from ..metrics.outputs import shifts_labels
from ..rng import derive_seed, isolated_rng, seed_host


def fine_tune(
    model: nn.Module,
    dataset: Any,
    steps: int,
    *,
    learning_rate: float,
    batch_size: int = 32,
    seed: int = 0,
    optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW,
    collator: Callable | None = None,
    label_names: Sequence[str] = ("labels",),
    on_step: Callable[[int, nn.Module], bool | None] | None = None,
    name: str = "fine-tune",
    progress: bool = True,
) -> nn.Module:
    """Return a copy of the model, trained for `steps` steps at a constant learning rate; the model is not touched.

    on_step(step, copy): called before the first step (0) and after each one; True stops. Batches are drawn in an order
    that depends on the seed only. Raises ValueError for an empty data set, FloatingPointError for a loss that is not
    finite.
    """
    if len(dataset) == 0:
        raise ValueError(f"dataset is empty: there is nothing to {name} on.")
    trained = copy.deepcopy(model)
    device = next(trained.parameters()).device
    shift = shifts_labels(trained)
    stepper = optimizer([weight for weight in trained.parameters() if weight.requires_grad], lr=learning_rate)
    with isolated_rng():
        seed_host(derive_seed(seed, "fine-tune"))
        generator = torch.Generator().manual_seed(derive_seed(seed, "fine-tune order"))
        loader = DataLoader(
            dataset, batch_size, shuffle=True, generator=generator, collate_fn=collator or default_data_collator
        )
        batches = iter(loader)
        for step in tqdm(range(steps + 1), desc=name, disable=not progress, leave=False):
            if step:
                if (batch := next(batches, None)) is None:
                    batches = iter(loader)
                    batch = next(batches)
                batch = {key: v.to(device) if isinstance(v, Tensor) else v for key, v in batch.items()}
                trained.train()
                loss = model_loss(trained, batch, label_names, shift)
                if not bool(torch.isfinite(loss)):
                    raise FloatingPointError(
                        f"Loss {float(loss.detach())} at step {step} of {name}: lower the learning rate."
                    )
                stepper.zero_grad(set_to_none=True)
                loss.backward()
                stepper.step()
            if on_step is not None and on_step(step, trained):
                break
    return trained


def model_loss(model: nn.Module, batch: dict, label_names: Sequence[str], shift: bool) -> Tensor:
    """The model's own mean loss on a batch; the cross-entropy of its logits where it returns none."""
    outputs = model(**dict(batch))
    loss = outputs.get("loss") if hasattr(outputs, "get") else None
    if loss is not None:
        return loss
    logits = logits_of(outputs)
    labels, shifted = targets_of(batch, label_names, shift)
    if labels is None:
        raise ValueError(f"The model returns no loss, and there are no labels under {tuple(label_names)} in the batch.")
    items = counted_items(batch, logits, label_names, shift)
    labels = nn.functional.pad(labels, (0, 1), value=-100) if shifted else labels
    return nn.functional.cross_entropy(logits[items], labels[items])
