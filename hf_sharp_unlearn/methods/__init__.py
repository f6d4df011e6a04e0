"""Unlearning methods: frozen dataclasses, one file each. A new one is a file and a line in METHODS."""

from .base import Method
from .neggrad import NegGradPlus
from .sharp_minmax import SharpMinMax

METHODS: dict[str, type[Method]] = {
    "neggrad": NegGradPlus,
    "sharp_minmax": SharpMinMax,
}

__all__ = ["METHODS", "Method", "NegGradPlus", "SharpMinMax", "resolve_method"]


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
