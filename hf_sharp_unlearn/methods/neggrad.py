"""NegGrad+ (Kurmanji et al., NeurIPS 2023, arXiv 2302.09880), with or without sharpness.

L(w) = alpha * CE(R) - (1 - alpha) * CE(F)                  descend on retain, ascend on forget

plain                    w <- w - lr * grad L(w)
sharpness_on="both"      eps from grad L(w);                w <- w - lr * grad L(w + eps)
sharpness_on="retain"    eps from the retain half alone;    w <- w - lr * (grad L_R(w + eps) + grad L_F(w))
sharpness_on="forget"    eps from the forget half alone;    w <- w - lr * (grad L_R(w) + grad L_F(w + eps))

L_R = alpha * CE(R), L_F = -(1 - alpha) * CE(F): weights and sign included. alpha = 1 is fine-tuning on the retain
set, alpha = 0 gradient ascent. "NegGrad" in Tang & Khanna (ICLR 2026, arXiv 2506.13715) is this method.
Published settings: alpha 0.95-0.9999, lr 0.01, 5-10 epochs; SAM rho 0.1 or ASAM rho 1.0 on CIFAR-100.
"""

from dataclasses import dataclass

from ..step import Sharpness, Window
from .base import Method


@dataclass(frozen=True)
class NegGradPlus(Method):
    """NegGrad+.

    alpha: retain weight in [0, 1]; smaller forgets more.
    sharpness: None, SAM(...) or ASAM(...).
    sharpness_on: "both", "retain" or "forget": the part of the objective that is perturbed.
    """

    alpha: float = 0.97
    sharpness: Sharpness | None = None
    sharpness_on: str = "both"

    def __post_init__(self):
        super().__post_init__()
        self.check_range("alpha", 0, 1)
        if self.sharpness_on not in ("both", "retain", "forget"):
            raise ValueError(f"NegGradPlus(sharpness_on={self.sharpness_on!r}): must be 'both', 'retain' or 'forget'.")

    @property
    def weights(self) -> dict[str, float]:
        return {"retain": self.alpha, "forget": self.alpha - 1}

    def step(self, window: Window) -> None:
        perturbed = self.streams if self.sharpness_on == "both" else (self.sharpness_on,)
        sharp = {stream: self.weights[stream] for stream in self.streams if stream in perturbed}
        flat = {stream: self.weights[stream] for stream in self.streams if stream not in perturbed}
        if self.perturbation is None or not sharp:
            window.backward(self.weights)
            return
        gradient = self.sharp_gradient(window, sharp)
        window.leave(window.add(gradient, window.gradient(flat, shared=False)) if flat else gradient)
