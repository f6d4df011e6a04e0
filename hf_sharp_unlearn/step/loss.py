"""The loss of a stream on a micro-batch: the model's, a method's, or what a method makes of it and of its teacher."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..data import count_items
from .items import counted_items, logits_of


@dataclass(frozen=True)
class Losses:
    """Called with (model, stream, inputs, items) it returns what the method's objective weighs: a 0-d mean over the
    items of the micro-batch, or one value a sample.

    compute(model, inputs, items): the model's own loss; with return_outputs=True, (loss, outputs). custom(stream): a
    method's `forget_loss` or `retain_loss`, or None. taught(stream, loss, outputs, outputs of the teacher, items),
    teacher: of a method that compares with a teacher. label_names, shift: see `items.counted_items`. context(): what
    forwards run in. autocast(): what the teacher runs in.
    """

    compute: Callable
    custom: Callable[[str], Callable | None]
    label_names: Sequence[str]
    shift: bool
    context: Callable
    autocast: Callable
    taught: Callable | None = None
    teacher: Callable[[Mapping[str, Any]], Any] | None = None

    def __call__(self, model: nn.Module, stream: str, inputs: dict, items: int) -> Tensor:
        if self.taught is None:
            return self.plain(model, stream, inputs, items)
        with self.context():
            custom = self.custom(stream)
            if custom is None:
                loss, outputs = self.compute(model, dict(inputs), items, return_outputs=True)
            else:
                loss = custom(outputs := model(**inputs), inputs)
            if loss.numel() != 1:
                raise ValueError(
                    f"The {stream} loss has shape {tuple(loss.shape)}: a method with a teacher adds it to a mean over "
                    "the items, so return that mean, a scalar."
                )
            with self.autocast():
                taught = self.teacher(inputs)
            counted = counted_items(inputs, logits_of(outputs), self.label_names, self.shift)
            return self.taught(stream, loss, outputs, taught, counted)

    def plain(self, model: nn.Module, stream: str, inputs: dict, items: int) -> Tensor:
        """The same without a teacher. Raises ValueError for a loss of another shape, which would be scaled wrongly."""
        custom, rows = self.custom(stream), count_items(inputs, (), False)
        with self.context():
            loss = self.compute(model, inputs, items) if custom is None else custom(model(**inputs), inputs)
        if loss.shape == (rows,):
            return loss
        if loss.numel() != 1:
            raise ValueError(
                f"The {stream} loss has shape {tuple(loss.shape)} for a batch of {rows}: return a scalar, the mean "
                f"over the batch's items, or one value per sample, shape ({rows},)."
            )
        return loss.reshape(())

    def logits(self, module: nn.Module, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """(logits, what of them is counted) of a micro-batch."""
        found = logits_of(module(**inputs))
        return found, counted_items(inputs, found, self.label_names, self.shift)
