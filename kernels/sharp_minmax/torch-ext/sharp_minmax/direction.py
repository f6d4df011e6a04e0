"""What a step follows and how an optimizer uses it: the arguments that all backends share."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

NARROW = (torch.bfloat16, torch.float16)  # computed on in float32, rounded once
Gradients = Sequence[Tensor] | None


class Direction(NamedTuple):
    """The min-max gradient over a partition, one tensor per weight in each list.

        d = where(mask, f, r)                 overlap: d = r + (f where mask, else 0)
        r = r0 + lam_retain * (r1 - r0)       lam 0: r0, lam 1: r1
        f = f0 - lam_forget * (f1 - f0)       lam 0: f0, lam 1: 2 f0 - f1

    r0, f0: gradients at w. r1, f1: gradients at the perturbed weights. A half whose lists are both None counts as zero;
        r0 may be None when lam_retain is 1, r1 and f1 when their lam is 0.
    masks: what a backend's `pack` made of one bool tensor per weight, True on the forget part. None: no forget half,
        d = r; `Direction(r0=gradients)` is a plain gradient.
    """

    r0: Gradients = None
    r1: Gradients = None
    f0: Gradients = None
    f1: Gradients = None
    masks: Gradients = None
    lam_retain: float = 1.0
    lam_forget: float = 1.0
    overlap: bool = False

    def retain(self) -> tuple[Gradients, Gradients]:
        """The lists that r is made of: (g0, None) for g0 alone, (None, g1) for g1 alone, both for a mixture."""
        if self.r1 is None or self.lam_retain == 0:
            return self.r0, None
        return (None if self.lam_retain == 1 else self.r0), self.r1

    def forget(self) -> tuple[Gradients, Gradients]:
        """The lists that f is made of, as in `retain`."""
        return self.f0, None if self.lam_forget == 0 else self.f1

    def lists(self) -> dict[str, Gradients]:
        """The gradients that are read, by name."""
        (r0, r1), (f0, f1) = self.retain(), self.forget()
        return {n: v for n, v in (("r0", r0), ("r1", r1), ("f0", f0), ("f1", f1)) if v is not None}


class SGD(NamedTuple):
    """One weight's SGD update, in torch's order of operations: g = d * scale + weight_decay * w;
    v = momentum * v + (1 - dampening) * g; w = w - lr * (g + momentum * v if nesterov, else v).

    At a weight's first step torch sets v = g: pass dampening 0 and a buffer of zeros. momentum 0 keeps no buffer.
    """

    lr: float
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False


class AdamW(NamedTuple):
    """One weight's AdamW update (Loshchilov & Hutter, ICLR 2019). step: number of this update, counted from 1.

    g = d * scale; w = (1 - lr * weight_decay) * w; m = m + (1 - beta1) (g - m); v = beta2 * v + (1 - beta2) g^2;
    w = w - lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
    """

    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    step: int = 1

    def factors(self) -> tuple[float, ...]:
        """(1 - lr * decay, 1 - beta1, beta2, 1 - beta2, 1 / sqrt(1 - beta2^step), eps, lr / (1 - beta1^step))."""
        return (
            1 - self.lr * self.weight_decay,
            1 - self.beta1,
            self.beta2,
            1 - self.beta2,
            (1 - self.beta2**self.step) ** -0.5,
            self.eps,
            self.lr / (1 - self.beta1**self.step),
        )
