"""What a method is: objective x sharpness x partition, and how one optimizer step follows from them.

A method is a frozen dataclass that validates itself and holds only its own hyperparameters. It says

    weights      signed coefficient of each stream's mean loss in the objective that is minimised
    passes       forward-backward pairs per stream and step (for the count of floating-point operations)
    fraction     share of the parameters in the forget part, or None for a method without a partition
    step(window) the update rule, written with the window's verbs (see `window.Window`)

A stream whose coefficient is 0 is neither loaded nor forwarded. An epoch is one pass over the retain set, or over the
forget set for a method that uses nothing else. Methods never see the trainer.
"""

import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..sharpness import ASAM, SAM

if TYPE_CHECKING:
    from ..window import Window

StreamLoss = Callable[[Any, Mapping[str, Any]], Tensor]


@dataclass(frozen=True)
class Method:
    """Base class of all methods.

    forget_loss, retain_loss: replace the model's own loss on that stream. Called as `loss(outputs, inputs)` with the
        model's outputs and the micro-batch (labels included; treat it as read-only). Returns a scalar, taken as the
        mean over the micro-batch's items (samples; unmasked target tokens for a causal LM), or one value per sample,
        shape (batch,). Sign: the loss to be *minimised in training*; the method does the ascent.
    """

    forget_loss: StreamLoss | None = field(default=None, kw_only=True, repr=False)
    retain_loss: StreamLoss | None = field(default=None, kw_only=True, repr=False)

    # Not annotated: an annotated name, ClassVar included, would fix its place in the subclasses' signatures.
    fraction = None
    sharpness = None

    def __post_init__(self):
        for name in ("forget_loss", "retain_loss"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise ValueError(f"{type(self).__name__}({name}={value!r}): must be a callable loss(outputs, inputs).")
        if self.sharpness is not None and not isinstance(self.sharpness, SAM | ASAM):
            raise ValueError(
                f"{type(self).__name__}(sharpness={self.sharpness!r}): must be None, SAM(rho=...) or ASAM(rho=...)."
            )

    @property
    def weights(self) -> dict[str, float]:
        """Signed coefficient of each stream, in the order in which the streams are forwarded."""
        raise NotImplementedError

    @property
    def streams(self) -> tuple[str, ...]:
        """Streams that are forwarded."""
        return tuple(stream for stream, weight in self.weights.items() if weight != 0)

    @property
    def perturbation(self) -> SAM | ASAM | None:
        """The sharpness in force: a radius of 0 has nothing to perturb, so its second passes are saved."""
        return self.sharpness if self.sharpness is not None and self.sharpness.rho > 0 else None

    @property
    def passes(self) -> int:
        return 1 if self.perturbation is None else 2

    @property
    def disjoint(self) -> bool:
        """True if each parameter follows one stream only, so that the streams' weights only set step sizes."""
        return False

    def loss_of(self, stream: str) -> StreamLoss | None:
        return {"forget": self.forget_loss, "retain": self.retain_loss}[stream]

    def step(self, window: "Window") -> None:
        """Leave the gradient of one optimizer step in `.grad`."""
        raise NotImplementedError

    def check_range(self, name: str, low: float, high: float, *, open_ends: bool = False) -> None:
        """Raise ValueError unless the field is a number in [low, high], or in (low, high) with `open_ends`."""
        value = getattr(self, name)
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not number or not (low < value < high if open_ends else low <= value <= high):
            bounds = f"({low}, {high})" if open_ends else f"[{low}, {high}]"
            raise ValueError(f"{type(self).__name__}({name}={value!r}): must be a number in {bounds}.")
