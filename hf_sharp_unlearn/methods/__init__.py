"""Unlearning methods: frozen dataclasses, one file each. A new one is a file and a line in METHODS."""

from .base import Method
from .finetune import FineTune
from .gradient_ascent import GradientAscent
from .influence import Influence
from .l1_sparse import L1Sparse
from .neggrad import NegGradPlus
from .random_label import RandomLabel
from .salun import SalUn
from .scrub import Scrub
from .sharp_minmax import SharpMinMax

METHODS: dict[str, type[Method]] = {
    "finetune": FineTune,
    "gradient_ascent": GradientAscent,
    "neggrad": NegGradPlus,
    "random_label": RandomLabel,
    "salun": SalUn,
    "l1_sparse": L1Sparse,
    "scrub": Scrub,
    "influence": Influence,
    "sharp_minmax": SharpMinMax,
}

__all__ = ["METHODS", "Method", *(cls.__name__ for cls in METHODS.values()), "resolve_method"]


def resolve_method(method: Method | str) -> Method:
    """Return a method instance; a name stands for the method with its default hyperparameters."""
    if isinstance(method, Method):
        return method
    if isinstance(method, str) and method in METHODS:
        return METHODS[method]()
    raise ValueError(
        f"method={method!r}: not an unlearning method. Pass one of the names {sorted(METHODS)} or an instance such as "
        "SharpMinMax(alpha=0.97)."
    )
