"""What a sharpness-aware perturbation is.

SAM   (Foret et al., ICLR 2021, arXiv 2010.01412)    eps = rho * g / ||g||
ASAM  (Kwon et al., ICML 2021, arXiv 2102.11600)     eps = rho * T^2 g / ||T g||,  T = |w| + eta elementwise

No constant is added to the norm: a zero norm gives eps = 0. eps does not change when the loss is scaled by a positive
number, so neither the weight of a loss nor an fp16 loss scale changes it.
"""

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels import reference


@dataclass(frozen=True)
class SAM:
    """Perturb along the gradient.

    rho: L2 radius of the perturbation in weight space, >= 0. 0 perturbs nothing and costs nothing. 0.1 is the
        CIFAR-100 value of the ASAM authors and of Sharp MinMax's.
    """

    rho: float = 0.1

    def __post_init__(self):
        _check_non_negative(self, "rho", self.rho)

    def eta_of(self, weight: Tensor) -> float | None:
        """None: T = 1 for this weight; a number eta: T = |w| + eta."""
        return None


@dataclass(frozen=True)
class ASAM:
    """Perturb each weight in proportion to its own size, which makes the radius independent of weight scale.

    rho: radius in the space of w / T, >= 0; about ten times SAM's for the same effect. 1.0 is the CIFAR-100 value.
    eta: offset of T, >= 0. With 0 a weight that is exactly 0 is never perturbed.
    adapt_1d: False keeps T = 1 for parameters with at most one dimension (biases, normalisation weights).
    """

    rho: float = 1.0
    eta: float = 0.0
    adapt_1d: bool = True

    def __post_init__(self):
        _check_non_negative(self, "rho", self.rho)
        _check_non_negative(self, "eta", self.eta)

    def eta_of(self, weight: Tensor) -> float | None:
        """None: T = 1 for this weight; a number eta: T = |w| + eta."""
        return None if weight.ndim <= 1 and not self.adapt_1d else float(self.eta)


Sharpness = SAM | ASAM


def _check_non_negative(owner: object, name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{type(owner).__name__}({name}={value!r}): must be a finite number >= 0.")


def realised_cosine(
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    grads: Sequence[Tensor],
    etas: Sequence[float | None],
    scale: float,
    masks: Sequence[Tensor] | None,
    inside: bool | None,
    cast: Callable[[Tensor], Tensor] | None = None,
) -> float:
    """Cosine between the perturbation that the weights took, after - before, and the one that was meant, in [-1, 1].

    1 where the weights' precision holds the perturbation; far below where it rounds most of it away. In float64, tensor
    by tensor; arguments as the kernels take them, masks as any backend packs them. nan if nothing moved.

    cast: what products make of a weight; the perturbation is then cast(after) - cast(before), the one that they read.
    """
    dot = real = meant = 0.0
    for i, (start, end, grad) in enumerate(zip(before, after, grads, strict=True)):
        read, read_before = (end, start) if cast is None else (cast(end), cast(start))
        taken = read.double() - read_before.double()
        start, moved = start.double(), torch.empty_like(start, dtype=torch.float64)
        part = None if masks is None else [masks[i] != 0]
        reference.displace([start], [grad.double()], [moved], [etas[i]], scale, part, inside)
        wanted = moved.sub_(start)
        dot += (wanted * taken).sum().item()
        real += taken.square().sum().item()
        meant += wanted.square().sum().item()
    return dot / math.sqrt(real * meant) if real and meant else math.nan
