"""Sharp MinMax (Tang & Khanna, "Sharpness-Aware Machine Unlearning", ICLR 2026, arXiv 2506.13715).

The parameters are split once by the size of their gradient on the forget set: the largest `fraction` is the forget
part (mask m = 1), the rest the retain part. Retain signals are learned at a flat minimum, forget signals are unlearned
by maximising sharpness:

    L_R = alpha * CE(R)            r0 = grad L_R(w)    eps_R = rho T^2 r0' / ||T r0'||    r1 = grad L_R(w + eps_R)
    L_F = -(1 - alpha) * CE(F)     f0 = grad L_F(w)    eps_F = rho T^2 f0' / ||T f0'||    f1 = grad L_F(w + eps_F)

    scope="part":  r0' = (1 - m) r0,  f0' = m f0        scope="all":  r0' = r0,  f0' = f0

    r = r0 + lam_retain (r1 - r0)      minimise loss + sharpness        (lam 1: r1)
    f = f0 - lam_forget (f1 - f0)      minimise loss - sharpness        (lam 1: 2 f0 - f1)
    overlap=False, the paper's:        d = where(m, f, r)      one optimizer step with d
    overlap=True, the default:         d = r + m f             and eps_R is over all parameters whatever the scope

    T = 1 for SAM and |w| + eta for ASAM. Both halves start from the same w. sharpness=None: r = r0, f = f0.
    With overlap=False nothing holds the forget part to the retain set, and it soon damages it: in the comparison of
    docs/methods.md the disjoint form is far behind NegGrad+ at any tuned setting, the overlapping one ahead of it.
    Published settings: fraction 0.3 on CIFAR-100 and 0.05 on ImageNet, ASAM rho 1.0.
"""

from dataclasses import dataclass

from ..step import ASAM, Sharpness, Window
from .base import Method


@dataclass(frozen=True)
class SharpMinMax(Method):
    """Sharp MinMax.

    alpha: retain weight in [0, 1]. With disjoint parts (overlap=False) it sets how fast the two parts move; under an
        optimizer that normalises gradient scale (Adam and its kin) it then has no effect.
    sharpness: SAM(...), ASAM(...), or None for the partitioned update without sharpness.
    fraction: share of the trainable parameters in the forget part, in (0, 1).
    scope: "part" perturbs each half's own parameters only, "all" every parameter.
    overlap: True lets the retain half move all parameters, the forget half its own part on top; False, as published,
        gives each parameter to one half only.
    lam_retain, lam_forget: weight of the sharpness term, >= 0. 0 is the plain gradient.
    """

    alpha: float = 0.97
    sharpness: Sharpness | None = ASAM(rho=1.0)
    fraction: float = 0.3
    scope: str = "part"
    overlap: bool = True
    lam_retain: float = 1.0
    lam_forget: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        self.check_range("alpha", 0, 1)
        self.check_range("fraction", 0, 1, open_ends=True)
        if self.scope not in ("part", "all"):
            raise ValueError(f"SharpMinMax(scope={self.scope!r}): must be 'part' or 'all'.")
        for name in ("lam_retain", "lam_forget"):
            self.check_range(name, 0, 1e6)

    @property
    def weights(self) -> dict[str, float]:
        return {"retain": self.alpha, "forget": self.alpha - 1}

    @property
    def disjoint(self) -> bool:
        return not self.overlap and len(self.streams) == 2

    def step(self, window: Window) -> None:
        part = self.scope == "part"
        insides = {"retain": False if part and not self.overlap else None, "forget": True if part else None}
        lams = {"retain": self.lam_retain, "forget": self.lam_forget}
        sharp = [stream for stream in self.streams if self.perturbation is not None and lams[stream] > 0]
        clean = {s: window.gradient({s: self.weights[s]}, shared=s in sharp) for s in self.streams}
        lengths = window.lengths(self.perturbation, *((clean[s], insides[s]) for s in sharp)) if sharp else []
        moved = {}
        for stream, length in zip(sharp, lengths, strict=True):
            with window.perturbed(self.perturbation, clean[stream], insides[stream], length):
                if stream == "retain" and self.lam_retain == 1:
                    clean[stream] = None  # the minimised half is r1 alone
                moved[stream] = window.gradient({stream: self.weights[stream]}, again=True)
        halves = (pair.get(stream) for stream in ("retain", "forget") for pair in (clean, moved))
        window.leave(window.compose(*halves, self.lam_retain, self.lam_forget, self.overlap))
