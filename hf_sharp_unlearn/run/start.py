"""What a run takes from the weights that it starts from: the partition and the teacher.

Both are made before the first step. Checkpoints hold the partition, and the teacher's fingerprint; a resume checks them
before it touches a weight.
"""

import logging
import os
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..methods import Method
from ..runtime import full_precision, isolated_rng
from ..step import Partition, Teacher, gradient_saliency

logger = logging.getLogger(__name__)


def make_partition(
    model: nn.Module,
    method: Method,
    batches: Iterable[tuple[Any, int]],
    loss: Callable[[nn.Module, str, Any, int], Any],
    processes: int,
) -> Partition | None:
    """The partition at the model's weights, if the method has one. batches: this process's share of the forget set;
    loss(model, stream, inputs, items): see `step.Losses.plain`."""
    if method.fraction is None:
        return None
    with isolated_rng():  # loaders draw their base seed from the generator of the run
        saliency = gradient_saliency(
            model, batches, lambda module, inputs, items: loss(module, "forget", dict(inputs), items), processes
        )
    partition = Partition.from_saliency(saliency, method.fraction)
    logger.info("Partition\n%s", partition.summary())
    return partition


def resumed_partition(model: nn.Module, method: Method, folder: str) -> Partition | None:
    """The partition that a checkpoint holds. Raises ValueError if it is not one of this model and method."""
    if method.fraction is None:
        return None
    partition = Partition.load(folder)
    partition.check(model, method.fraction, f"The partition in resume_from_checkpoint={folder!r}")
    return partition.to(model)


def make_teacher(model: nn.Module, method: Method) -> Teacher | None:
    """A copy of the model as it is, if the method has a teacher. Let go of an earlier one first: never two copies."""
    if not method.teacher:
        return None
    with full_precision(model):  # the copy gets the model's own forward
        return Teacher(model)


def resumed_teacher(model: nn.Module, method: Method, folder: str) -> Teacher | None:
    """The teacher of a run that is resumed: the model before the checkpoint is loaded. Raises ValueError if the
    checkpoint was made with another one."""
    teacher = make_teacher(model, method)
    if teacher is not None:
        teacher.check(folder)
    return teacher


def keep_beside(folder: str, step: int, *kept: Partition | Teacher | None) -> None:
    """Save what a resume needs beside the checkpoint of a step. folder: where checkpoints lie."""
    for part in kept:
        if part is not None:
            part.save(os.path.join(folder, f"{PREFIX_CHECKPOINT_DIR}-{step}"))


def complete_weights(model: nn.Module, folder: str, missing: list[str]) -> None:
    """Load what Trainer could not: it reads a checkpoint under the names that the weights have today, and
    `save_pretrained` has written those of models (ViT, Swin, ...) whose weights were renamed under their old ones.

    missing: names that Trainer has not found. Raises ValueError if weights are missing for good: going on would mix
    them with those of another model.
    """
    weights = dict(model.state_dict(keep_vars=True))
    loaded = {weights[name].data_ptr() for name in weights.keys() - set(missing)}  # tied ones are saved once
    missing = [name for name in missing if name in weights and weights[name].data_ptr() not in loaded]
    if not missing:
        return
    if isinstance(model, PreTrainedModel):
        saved, found = type(model).from_pretrained(folder, dtype=model.dtype, output_loading_info=True)
        missing = sorted(found["missing_keys"])
        if not missing:
            model.load_state_dict(saved.state_dict())
            return
    raise ValueError(
        f"The checkpoint {folder!r} does not hold {len(missing)} weights of the model, e.g. {missing[0]!r}: it was "
        "made with another model."
    )
