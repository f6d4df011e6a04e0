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
from transformers import default_data_collator

from ..data import count_items
from ..runtime import Inputs, RngState, derive_seed, progress_bar, seed_all
from ..step import aligned_labels, counted_items, logits_of, shifts_labels


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

    The copy is trained in single precision, whatever the precision of the model, and as a whole if no parameter of the
    model is trainable.

    on_step(step, copy): called before the first step (0) and after each one; True stops. Batches are drawn in an order
    that depends on the seed only. Raises ValueError for an empty data set, FloatingPointError for a loss that is not
    finite.
    """
    if len(dataset) == 0:
        raise ValueError(f"dataset is empty: there is nothing to {name} on.")
    trained = copy.deepcopy(model)
    if any(weight.dtype in (torch.float16, torch.bfloat16) for weight in trained.parameters()):
        trained.float()  # half-precision weights round small updates away, so everything would look resistant
    if not any(weight.requires_grad for weight in trained.parameters()):  # a model that was frozen for evaluation
        for weight in trained.parameters():
            weight.requires_grad_(weight.is_floating_point())
    prepared, shift = Inputs(trained, label_names), shifts_labels(trained)
    stepper = optimizer([weight for weight in trained.parameters() if weight.requires_grad], lr=learning_rate)
    state = RngState(prepared.device)
    try:
        seed_all(derive_seed(seed, "fine-tune"), prepared.device)
        generator = torch.Generator().manual_seed(derive_seed(seed, "fine-tune order"))
        loader = DataLoader(
            dataset, batch_size, shuffle=True, generator=generator, collate_fn=collator or default_data_collator
        )
        batches = iter(loader)
        for step in progress_bar(range(steps + 1), desc=name, disable=not progress, leave=False):
            if step:
                if (batch := next(batches, None)) is None:
                    batches = iter(loader)
                    batch = next(batches)
                _training_mode(trained, count_items(batch, (), False))
                loss = model_loss(trained, prepared(batch), label_names, shift)
                if not bool(torch.isfinite(loss)):
                    raise FloatingPointError(
                        f"Loss {float(loss.detach())} at step {step} of {name}: lower the learning rate."
                    )
                stepper.zero_grad(set_to_none=True)
                loss.backward()
                stepper.step()
            if on_step is not None and on_step(step, trained):
                break
    finally:
        state.restore()
    return trained


def _training_mode(model: nn.Module, samples: int) -> None:
    """A batch of one has no batch statistics: BatchNorm then uses its running ones."""
    model.train()
    if samples == 1:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def model_loss(model: nn.Module, batch: dict, label_names: Sequence[str], shift: bool) -> Tensor:
    """The model's own mean loss on a batch; the cross-entropy of its logits where it returns none."""
    outputs = model(**dict(batch))
    loss = outputs.get("loss") if hasattr(outputs, "get") else None
    if loss is not None:
        return loss
    logits = logits_of(outputs)
    labels = aligned_labels(batch, label_names, shift)
    if labels is None:
        raise ValueError(f"The model returns no loss, and there are no labels under {tuple(label_names)} in the batch.")
    items = counted_items(batch, logits, label_names, shift)
    return nn.functional.cross_entropy(logits[items], labels[items])
