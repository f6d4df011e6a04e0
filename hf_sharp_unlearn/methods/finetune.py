"""Fine-tuning on the retain set, and sharpness-aware training.

L(w) = CE(R)

plain        w <- w - lr * grad L(w)
sharpness    w <- w - lr * grad L(w + eps),    eps from grad L(w)

Symbols: CE(R) mean cross-entropy on the retain set, w weights, lr learning rate, eps see `sharpness`.
The forget set is not used: what is forgotten is forgotten by drift. With a sharpness, and all training data as the
retain set, this is sharpness-aware training itself (Foret et al., ICLR 2021, arXiv 2010.01412), which Tang & Khanna
(ICLR 2026, arXiv 2506.13715) compare as pre-training algorithm too.
Published settings: lr 0.01, 10 epochs (Jia et al., NeurIPS 2023, arXiv 2304.04934; Zhao et al., NeurIPS 2024, RUM).
"""

from dataclasses import dataclass

from ..step import Sharpness
from .base import Method


@dataclass(frozen=True)
class FineTune(Method):
    """Fine-tuning on the retain set.

    sharpness: None, SAM(...) or ASAM(...).
    """

    sharpness: Sharpness | None = None

    @property
    def weights(self) -> dict[str, float]:
        return {"retain": 1.0}
