"""L1-sparse unlearning (Jia et al., NeurIPS 2023, arXiv 2304.04934).

L(w) = CE(R) + gamma_t ||w||_1,    gamma_t = gamma max(0, 1 - t / ((1 - tail) T))

plain        w <- w - lr * grad L(w),    the penalty's gradient is gamma_t sign(w)
sharpness    w <- w - lr * grad L(w + eps),    eps from grad L(w): the penalty belongs to both passes

Symbols: CE(R) mean cross-entropy on the retain set, t step, T steps of the run, lr learning rate, eps see `sharpness`.
||w||_1 runs over all trainable parameters, biases and normalisation layers included, as the authors' code has it; that
code lowers gamma once an epoch, here it falls with every step. With gamma = 0 this is fine-tuning.
Clipping sees the penalty too: its gradient has the norm gamma sqrt(N) for N parameters, 2.5 at 5e-4 and 25 million.
Published settings: lr 0.01, 10 epochs; gamma is tuned, the authors' code has 0.2 as its default.
"""

from dataclasses import dataclass
from functools import partial

import torch

from ..step import Penalty, Sharpness
from .base import Method


@dataclass(frozen=True)
class L1Sparse(Method):
    """L1-sparse fine-tuning on the retain set.

    gamma: weight of the penalty at the first step, >= 0.
    tail: share of the run, at its end, without penalty, in [0, 1).
    sharpness: None, SAM(...) or ASAM(...).
    """

    gamma: float = 5e-4
    tail: float = 0.0
    sharpness: Sharpness | None = None

    def __post_init__(self):
        super().__post_init__()
        self.check_range("gamma", 0, 1e6)
        self.check_range("tail", 0, 1)
        if self.tail == 1:
            raise ValueError("L1Sparse(tail=1): no step would have a penalty. Give a share in [0, 1), or gamma=0.")

    @property
    def weights(self) -> dict[str, float]:
        return {"retain": 1.0}

    def penalty(self, progress: float) -> Penalty | None:
        gamma = self.gamma * max(0.0, 1 - progress / (1 - self.tail))
        return partial(l1_norm, gamma) if gamma > 0 else None


@torch.no_grad()
def l1_norm(gamma: float, params: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """gamma ||w||_1 over all tensors, and its gradient."""
    values = [weight.detach() for weight in params]
    norm = torch.stack(torch._foreach_norm(values, 1)).sum()
    gradient = torch._foreach_sign(values)
    torch._foreach_mul_(gradient, gamma)
    return gamma * norm, list(gradient)
