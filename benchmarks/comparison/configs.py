"""What is compared: methods, sharpness, and the grid that each is tuned on.

Each configuration has six grid points (learning rate, strength), or six learning rates where a method has no strength.
The points of a method are the same whatever its sharpness, and those of all methods with an alpha are the same. They
were placed by single trial runs on the tuning seed, so that what is best for SGD does not lie far outside.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product

from hf_sharp_unlearn import (
    ASAM,
    SAM,
    FineTune,
    GradientAscent,
    Influence,
    L1Sparse,
    Method,
    NegGradPlus,
    RandomLabel,
    SalUn,
    Scrub,
    SharpMinMax,
)

Point = tuple[float, float | None]


@dataclass(frozen=True)
class Config:
    """name: in tables. strength: what the second number of a grid point is. make(learning rate, strength) -> the
    method; None: the released code's loop."""

    name: str
    strength: str
    grid: tuple[Point, ...]
    make: Callable[[float, float | None], Method] | None
    ablation: bool = False


def _grid(rates: tuple, strengths: tuple = (None,)) -> tuple[Point, ...]:
    return tuple(product(rates, strengths))


ALPHA = (*_grid((0.03,), (0.9, 0.95, 0.99, 0.999)), *_grid((0.01,), (0.95, 0.99)))
SHARPNESS = {"SGD": None, "ASAM 1.0": ASAM(1.0)}

# name: (strength, grid, (sharpness, learning rate, strength) -> method)
METHODS = {
    "finetune": ("", _grid((0.01, 0.03, 0.06, 0.1, 0.2, 0.4)), lambda s, _, __: FineTune(s)),
    "gradient ascent": ("", _grid((0.001, 0.002, 0.003, 0.004, 0.006, 0.01)), lambda s, _, __: GradientAscent(s)),
    "NegGrad+": ("alpha", ALPHA, lambda s, _, a: NegGradPlus(a, s)),
    "random label": ("", _grid((0.03, 0.06, 0.1, 0.15, 0.2, 0.3)), lambda s, _, __: RandomLabel(s)),
    "SalUn": ("fraction", _grid((0.03, 0.1, 0.2), (0.3, 0.5)), lambda s, _, p: SalUn(s, fraction=p)),
    "L1-sparse": ("gamma", _grid((0.03, 0.1, 0.2), (1e-4, 5e-4)), lambda s, _, g: L1Sparse(g, sharpness=s)),
    "SCRUB": ("msteps", _grid((0.03, 0.05, 0.1), (1, 3)), lambda s, _, k: Scrub(msteps=k, sharpness=s)),
    # a single update: its scale stands in the place of the learning rate
    "influence": ("damping", _grid((0.3, 0.6, 1.0), (1e-3, 3e-3)),
                  lambda s, r, d: Influence(r, d, samples=500, iterations=20, sharpness=s)),
    "Sharp MinMax": ("alpha", ALPHA, lambda s, _, a: SharpMinMax(a, s, overlap=False)),  # the paper's parts
}  # fmt: skip

# Sharp MinMax with ASAM 1.0, fraction 0.3, disjoint parts, but for these settings; the first is the library's default
VARIANTS = {
    "overlap": {"overlap": True},
    "scope all": {"scope": "all"},
    "overlap, scope all": {"overlap": True, "scope": "all"},
    "lam_forget 0": {"lam_forget": 0.0},
    "lam_forget 0.5": {"lam_forget": 0.5},
    "overlap, lam_forget 0": {"overlap": True, "lam_forget": 0.0},
    "fraction 0.05": {"fraction": 0.05},
    "fraction 0.1": {"fraction": 0.1},
    "fraction 0.5": {"fraction": 0.5},
    "overlap, fraction 0.05": {"overlap": True, "fraction": 0.05},
}


def _configs() -> dict[str, Config]:
    found = [
        Config(f"{method}, {kind}", strength, grid, partial(make, sharpness))
        for method, (strength, grid, make) in METHODS.items()
        for kind, sharpness in SHARPNESS.items()
    ]
    found.append(Config("NegGrad+, SAM 0.1", "alpha", ALPHA, lambda _, a: NegGradPlus(a, SAM(0.1))))
    for name, options in VARIANTS.items():
        make = partial(lambda options, _, a: SharpMinMax(a, **{"overlap": False, **options}), options)
        found.append(Config(f"Sharp MinMax, {name}", "alpha", ALPHA, make, ablation=name != "overlap"))
    for side in ("retain", "forget"):
        make = partial(lambda side, _, a: NegGradPlus(a, ASAM(1.0), side), side)
        found.append(Config(f"NegGrad+, ASAM 1.0 on {side} only", "alpha", ALPHA, make, ablation=True))
    found.append(Config("released code's semantics", "alpha", ALPHA, None, ablation=True))
    return {config.name: config for config in found}


CONFIGS = _configs()
