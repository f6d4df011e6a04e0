"""Influence unlearning: one Newton step (Koh & Liang, ICML 2017, arXiv 1703.04730; Izzo et al., AISTATS 2021).

v = |F| / |S| (grad CE(R) - grad CE(F))        gradient of CE(R) - CE(S), S = R and F together
w <- w - scale (G + damping)^-1 v              one step, then the run is over
sharpness: v at w + eps, eps from v at w

Symbols: CE mean cross-entropy in eval mode, F forget set, R retain set, G Gauss-Newton matrix of CE(R) on `samples`
retain samples (see `curvature`). What training had not finished cancels in v: only the change from S to R is left.

G, and not WoodFisher: the low-rank update that public code runs keeps its auxiliary vector parallel to the first
sample's gradient, and an empirical Fisher of gradients that have all but vanished says little about curvature. And not
(E)K-FAC, which approximates this same G by Kronecker factors of linear and convolutional layers: conjugate gradients
solve for the G of the sample itself, for any architecture, in a handful of vectors (Martens, arXiv 1412.1193; that the
damped Gauss-Newton matrix is what influence functions should invert: Bae et al., NeurIPS 2022, arXiv 2209.05364).

The update is made as it is: learning rate, schedule, momentum, decay, clipping and number of epochs have no say.
Published settings: none for this estimate; public WoodFisher code takes 1,000 retain samples and tunes the scale.
"""

import logging
from dataclasses import dataclass

from ..data import Pass
from ..step import Sharpness, Window
from .base import Method

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Influence(Method):
    """Influence unlearning.

    scale: factor of the step, > 0; 1 is the Newton step.
    damping: added to the curvature, > 0, in units of loss per squared weight. Smaller moves farther along flat
        directions.
    samples: number of retain samples that the curvature is measured on, >= 1; all if there are fewer.
    iterations: at most so many products with the curvature, >= 1.
    tolerance: the solution's relative residual at which they stop, in [0, 1).
    sharpness: None, SAM(...) or ASAM(...).
    """

    scale: float = 1.0
    damping: float = 1e-3
    samples: int = 1000
    iterations: int = 30
    tolerance: float = 1e-2
    sharpness: Sharpness | None = None

    single_step = True
    vectors = 9  # of the model's size, held at once beside weights and activations: v and its halves, and 6 to solve

    def __post_init__(self):
        super().__post_init__()
        for name in ("scale", "damping"):
            self.check_range(name, 0, 1e12, open_ends=True)
        self.check_whole("samples", 1)
        self.check_whole("iterations", 1)
        self.check_range("tolerance", 0, 1)
        if self.tolerance == 1:
            raise ValueError("Influence(tolerance=1): no update would satisfy it already. Give a number in [0, 1).")

    @property
    def weights(self) -> dict[str, float]:
        return {"retain": 1.0, "forget": -1.0}

    def plan(self, epoch: int) -> tuple[Pass, ...]:
        return (Pass(None),)

    def step(self, window: Window) -> None:
        target = window.whole_gradient(self.weights)
        if self.perturbation is not None:
            with window.perturbed(self.perturbation, target):
                target = window.whole_gradient(self.weights, again=True)
        update, residual, products = window.population.solve(
            target,
            "retain",
            samples=self.samples,
            damping=self.damping,
            iterations=self.iterations,
            tolerance=self.tolerance,
        )
        if residual > self.tolerance:
            logger.warning(
                f"Influence: relative residual {residual:.3g} after {products} products, tolerance {self.tolerance}. "
                "The step is shorter than the exact one. Raise iterations or damping."
            )
        items = window.population.items
        share = items["forget"] / (items["forget"] + items["retain"])
        window.leave([self.scale * share * part for part in update])
