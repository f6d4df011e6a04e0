"""SalUn, saliency unlearning (Fan et al., ICLR 2024, arXiv 2310.12508).

m = 1 on the largest `fraction` of | sum over F of grad CE |, at the trained weights (see `partition`)
L(w) = mean of CE over R and F', F' the forget set with random labels (see `random_label`)

plain        w <- w - lr * m grad L(w)
sharpness    w <- w - lr * m grad L(w + eps),    eps from m grad L(w): only weights that may move are perturbed

Symbols: m saliency mask, CE cross-entropy, R retain set, F forget set, w weights, lr learning rate.
Weights with m = 0 stay what they are, bit for bit, under any optimizer: neither weight decay nor momentum moves them
(schedule-free optimizers, which move weights outside their step too, are the exception).
With fraction = 1 this is Random Label.
Published settings: fraction 0.5, lr 0.013, 10 epochs (CIFAR-10, the authors' example); lr 0.1, 10 epochs (RUM).
"""

from dataclasses import dataclass

from ..step import Window
from .random_label import RandomLabel


@dataclass(frozen=True)
class SalUn(RandomLabel):
    """SalUn.

    sharpness: None, SAM(...) or ASAM(...).
    classes: number of classes; None takes it from the model's head.
    fraction: share of the trainable parameters that may move, in (0, 1].
    """

    fraction: float = 0.5

    frozen = True

    def __post_init__(self):
        super().__post_init__()
        self.check_range("fraction", 0, 1)
        if self.fraction == 0:
            raise ValueError("SalUn(fraction=0): no weight could move. Give a share in (0, 1].")

    def step(self, window: Window) -> None:
        salient = self.sharp_gradient(window, self.weights, inside=True)
        window.leave(window.compose(None, None, salient, None, 1.0, 1.0, False))
