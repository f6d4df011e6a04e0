"""SCRUB and SCRUB+R (Kurmanji et al., NeurIPS 2023, arXiv 2302.09880).

max step     w <- w + lr * grad D(F; w)                             a pass over F, opens the first `msteps` epochs
min step     w <- w - lr * grad [alpha D(R; w) + gamma CE(R; w)]     a pass over R, in every epoch
sharpness    each step's gradient at w + eps, eps from that step's own objective

D(X; w) = T^2 mean over X of KL( softmax(z_teacher / T) || softmax(z(w) / T) )

Symbols: F forget set, R retain set, z logits, T temperature, CE cross-entropy, lr learning rate.
The teacher is the model that the run starts from, in eval mode (see `teacher`). Forget samples never move BatchNorm
statistics. At the start D and its gradient are 0, but for dropout and batch statistics: without these, the first pass
over F moves nothing, and a perturbation in it follows rounding errors. SCRUB+R rewinds to the end of an epoch in the
end (see `rewind`): the one whose error on F is closest to the final model's error on held-out samples of F's classes.
Published settings: alpha 0.5, gamma 1, T 4, msteps 3, 5 epochs, SGD lr 5e-4, batches of 16 (F) and 32 (R); on large
data sets alpha 0.001, gamma 0.99, msteps 2, 3 epochs, batches of 32 and 128 (the authors' notebooks); lr 5e-3, T 4,
msteps 4, 5 epochs (Zhao et al., NeurIPS 2024, RUM).
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..data import Pass
from ..step import Sharpness, distillation, logits_of
from .base import Method


@dataclass(frozen=True)
class Scrub(Method):
    """SCRUB.

    alpha: weight of the divergence from the teacher on the retain set, >= 0.
    gamma: weight of the cross-entropy on the retain set, >= 0.
    temperature: T > 0.
    msteps: number of epochs that begin with a pass over the forget set, >= 0.
    sharpness: None, SAM(...) or ASAM(...).
    rewind: name of the evaluation split that holds unseen samples (SCRUB+R), e.g. "test"; None does not rewind.
    """

    alpha: float = 0.5
    gamma: float = 1.0
    temperature: float = 4.0
    msteps: int = 3
    sharpness: Sharpness | None = None
    rewind: str | None = None

    teacher = True

    def __post_init__(self):
        super().__post_init__()
        for name in ("alpha", "gamma"):
            self.check_range(name, 0, 1e6)
        self.check_range("temperature", 0, 1e6, open_ends=True)
        self.check_whole("msteps", 0)
        if self.alpha == self.gamma == 0:
            raise ValueError("Scrub(alpha=0, gamma=0): nothing would be learned on the retain set. Raise one of them.")
        if self.forget_loss is not None:
            raise ValueError(
                "Scrub(forget_loss=...): what SCRUB maximises on the forget set is the divergence from the teacher. "
                "Use NegGradPlus for another loss."
            )
        if self.rewind is not None and not isinstance(self.rewind, str):
            raise ValueError(f"Scrub(rewind={self.rewind!r}): must be None or the name of an evaluation split.")

    @property
    def weights(self) -> dict[str, float]:
        return {"retain": 1.0, "forget": -1.0 if self.msteps else 0.0}

    def plan(self, epoch: int) -> tuple[Pass, ...]:
        return (Pass("forget"), Pass("retain")) if epoch < self.msteps else (Pass("retain"),)

    def taught_loss(self, stream: str, loss: Tensor, outputs: Any, taught: Any, items: Tensor) -> Tensor:
        divergence = distillation(logits_of(outputs), logits_of(taught), items, self.temperature)
        if stream == "forget":
            return divergence
        return self.alpha * divergence + self.gamma * loss.reshape(())
