"""What a method is: objective x sharpness x partition, and how one optimizer step follows from them.

A method is a frozen dataclass that validates itself and holds only its own hyperparameters. It says

    weights      signed coefficient of each stream's mean loss in the objective that is minimised
    plan(epoch)  the passes over the data that make up an epoch; by default one over the retain set, with the forget set
                 beside it, or over the only stream there is
    passes       forward-backward pairs per stream and step (for the count of floating-point operations)
    step(window) the update rule, written with the window's verbs (see `window.Window`); by default a step down the
                 objective, with one perturbation from the whole objective if there is a sharpness

and what it needs of the trainer

    fraction     share of the parameters in the forget part, or None: no partition
    frozen       parameters outside the forget part do not move at all
    teacher      a copy of the starting model, whose outputs `taught_loss` compares with
    relabel      forget samples come with random labels (stream "union")
    rewind       name of the evaluation split by which an epoch is chosen in the end, or None
    single_step  the run is one step: `step` reads all data by itself, and what it leaves is the update, not a gradient

Streams are "retain", "forget", and "union": both sets as one. A stream whose coefficient is 0 is neither loaded nor
forwarded. Methods never see the trainer.
"""

import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..data import Pass
from ..step import ASAM, SAM, Gradient, Penalty, Window

StreamLoss = Callable[[Any, Mapping[str, Any]], Tensor]


@dataclass(frozen=True)
class Method:
    """Base class of all methods.

    forget_loss, retain_loss: replace the model's own loss on that stream ("union" takes retain_loss). Called as
        `loss(outputs, inputs)` with the model's outputs and the micro-batch (labels included; treat it as read-only).
        Returns a scalar, taken as the mean over the micro-batch's items (samples; unmasked target tokens for a causal
        LM), or one value per sample, shape (batch,). Sign: the loss to be *minimised in training*; the method does the
        ascent.
    """

    forget_loss: StreamLoss | None = field(default=None, kw_only=True, repr=False)
    retain_loss: StreamLoss | None = field(default=None, kw_only=True, repr=False)

    # Not annotated: an annotated name, ClassVar included, would fix its place in the subclasses' signatures.
    fraction = None
    sharpness = None
    frozen = False
    teacher = False
    relabel = False
    rewind = None
    single_step = False

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

    def plan(self, epoch: int) -> tuple[Pass, ...]:
        """The passes of an epoch, counted from 0. Windows never mix two passes."""
        return (Pass(*self.streams),)

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
        return self.forget_loss if stream == "forget" else self.retain_loss

    def penalty(self, progress: float) -> Penalty | None:
        """A term of the objective that needs no data; progress: share of the run's steps that lie behind, in [0, 1)."""
        return None

    def taught_loss(self, stream: str, loss: Tensor, outputs: Any, taught: Any, items: Tensor) -> Tensor:
        """Loss of a stream for a method with a teacher: a mean over the items.

        loss: the model's own, or that of `loss_of`. outputs, taught: of the model and of the teacher. items: what the
            mean runs over, True for each counted entry of the logits' leading dimensions: (batch,), or (batch, tokens).
        """
        raise NotImplementedError

    def step(self, window: Window) -> None:
        """Leave the gradient of one optimizer step in `.grad`."""
        if self.perturbation is None:
            window.backward(self.weights, self.penalty(window.progress))
        else:
            window.leave(self.sharp_gradient(window, self.weights))

    def sharp_gradient(self, window: Window, objective: Mapping[str, float], inside: bool | None = None) -> Gradient:
        """Gradient of an objective, and of the penalty, at w + eps, eps from the same gradient at w; at w without a
        sharpness. inside: as in `Window.perturbed`."""
        penalty = self.penalty(window.progress)
        gradient = window.gradient(objective, penalty=penalty, shared=self.perturbation is not None)
        if self.perturbation is None:
            return gradient
        with window.perturbed(self.perturbation, gradient, inside):
            del gradient  # its buffer is free for the second pass
            return window.gradient(objective, again=True, penalty=penalty)

    def check_range(self, name: str, low: float, high: float, *, open_ends: bool = False) -> None:
        """Raise ValueError unless the field is a number in [low, high], or in (low, high) with `open_ends`."""
        value = getattr(self, name)
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not number or not (low < value < high if open_ends else low <= value <= high):
            bounds = f"({low}, {high})" if open_ends else f"[{low}, {high}]"
            raise ValueError(f"{type(self).__name__}({name}={value!r}): must be a number in {bounds}.")

    def check_whole(self, name: str, low: int) -> None:
        """Raise ValueError unless the field is a whole number >= low."""
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(f"{type(self).__name__}({name}={value!r}): must be a whole number >= {low}.")
