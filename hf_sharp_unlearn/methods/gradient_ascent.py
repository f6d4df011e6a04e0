"""Gradient ascent on the forget set (Graves et al., AAAI 2021, arXiv 2010.10981; Thudi et al., arXiv 2109.13398).

L(w) = -CE(F)

plain        w <- w - lr * grad L(w)
sharpness    w <- w - lr * grad L(w + eps),    eps from grad L(w): towards *lower* loss on the forget set

Symbols: CE(F) mean cross-entropy on the forget set, w weights, lr learning rate, eps see `sharpness`.
The retain set is not used, so nothing holds the model together: a few small steps are all it stands. BatchNorm
statistics do not move.
Published settings: lr 1e-4, 5 epochs (Zhao et al., NeurIPS 2024, RUM, where it is called NegGrad).
"""

from dataclasses import dataclass

from ..step import Sharpness
from .base import Method


@dataclass(frozen=True)
class GradientAscent(Method):
    """Gradient ascent on the forget set.

    sharpness: None, SAM(...) or ASAM(...).
    """

    sharpness: Sharpness | None = None

    @property
    def weights(self) -> dict[str, float]:
        return {"forget": -1.0}
