"""Random Label (Golatkar et al., CVPR 2020, arXiv 1911.04933; Graves et al., AAAI 2021, arXiv 2010.10981).

L(w) = mean of CE over R and F', F' the forget set with random labels      ordinary training on the relabelled set

plain        w <- w - lr * grad L(w)
sharpness    w <- w - lr * grad L(w + eps),    eps from grad L(w)

Symbols: CE cross-entropy, R retain set, w weights, lr learning rate, eps see `sharpness`.
Batches are drawn from the union of both sets, shuffled together: an epoch shows every sample once, and forget samples
make up their share of a batch on average. BatchNorm statistics move, as in any training. The random label is uniform
over the classes other than the true one, drawn anew each epoch (see `relabel`); public code draws the true one too.
Published settings: lr 0.1, 10 epochs (Zhao et al., NeurIPS 2024, RUM); lr 0.013, 10 epochs (Fan et al., ICLR 2024).
"""

from dataclasses import dataclass

from ..step import Sharpness
from .base import Method, StreamLoss


@dataclass(frozen=True)
class RandomLabel(Method):
    """Random Label.

    sharpness: None, SAM(...) or ASAM(...).
    classes: number of classes; None takes it from the model's head.
    """

    sharpness: Sharpness | None = None
    classes: int | None = None

    relabel = True

    def __post_init__(self):
        super().__post_init__()
        if self.classes is not None:
            self.check_whole("classes", 2)
        if self.forget_loss is not None:
            raise ValueError(
                f"{type(self).__name__}(forget_loss=...): both sets are one here, in one batch. Pass retain_loss, "
                "which then replaces the model's loss on both."
            )

    def loss_of(self, stream: str) -> StreamLoss | None:
        return self.retain_loss  # both sets are one; the saliency mask of a subclass is made with it too

    @property
    def weights(self) -> dict[str, float]:
        return {"union": 1.0}
