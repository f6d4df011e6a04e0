"""The options of all methods together, made from their dataclasses: a new method has its flags by being in METHODS."""

import dataclasses
import re
import types
import typing
from typing import Any, Literal

from ..methods import METHODS, Method
from ..step import ASAM, SAM
from .options import option
from .parsing import UsageError

SHARPNESS = {"sam": SAM, "asam": ASAM}


def _documented(cls: type) -> dict[str, str]:
    """Field -> its description in the class's docstring; base classes' where it has none."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        text = base.__doc__ or ""
        entries = re.finditer(r"^ {4}((?:\w+, )*\w+): (.*?)(?=^ {4}(?:\w+, )*\w+: |\n\n|\Z)", text, re.S | re.M)
        for entry in entries:
            found |= {name: " ".join(entry[2].split()) for name in entry[1].split(", ")}
    return found


def _own_fields(cls: type) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(cls) if not field.kw_only]


def _all_fields() -> list[tuple[str, Any, Any]]:
    """(name, type, field) of every hyperparameter: the method's defaults hold where one is not given."""
    owners: dict[str, dict[str, tuple[str, Any]]] = {}  # hyperparameter -> method -> (description, default)
    kinds: dict[str, Any] = {}
    for method, cls in METHODS.items():
        hints, documented = typing.get_type_hints(cls), _documented(cls)
        for field in _own_fields(cls):
            owners.setdefault(field.name, {})[method] = documented.get(field.name, "").rstrip("."), field.default
            kinds[field.name] = hints[field.name]
    found = []
    for name, of_methods in owners.items():
        if name == "sharpness":
            continue
        texts: dict[str, list[str]] = {}  # description -> the methods that it is true of
        for method, (text, default) in of_methods.items():
            texts.setdefault(text, []).append(f"{method} {default}")
        shown = ". ".join(f"{', '.join(defaults)}: {text}" for text, defaults in texts.items())
        kind = kinds[name] if isinstance(kinds[name], types.UnionType) else kinds[name] | None
        found.append((name, kind, option(f"{shown}")))
    return found


def _sharpness_default() -> str:
    names = {cls: name for name, cls in SHARPNESS.items()}
    own = {
        m: names.get(type(f.default)) for m, cls in METHODS.items() for f in _own_fields(cls) if f.name == "sharpness"
    }
    return ", ".join(f"{method} {name}" for method, name in own.items() if name) + ", the others none"


_SHARPNESS_FIELDS = [
    (
        "sharpness",
        str | None,
        option(f"none, sam or asam. Default: {_sharpness_default()}", choices=["none", *SHARPNESS]),
    ),
    ("rho", float | None, option(f"radius of the perturbation, >= 0. Default: sam {SAM().rho}, asam {ASAM().rho}")),
    ("eta", float | None, option(f"asam: offset of |w|, >= 0. Default: {ASAM().eta}")),
    ("adapt_1d", bool | None, option("asam: false keeps biases and norms out of the adaptation. Default: true")),
]


class _Methods:
    _argument_group_name = "method"

    def build(self) -> Method:
        """The method with what was given; the rest are its defaults. Raises ValueError for what it does not have."""
        cls = METHODS[self.method]
        own = {field.name for field in _own_fields(cls)}
        given = {name: getattr(self, name) for name, _, _ in _all_fields() if getattr(self, name) is not None}
        for name in given:
            if name not in own:
                owners = [m for m, c in METHODS.items() if name in {f.name for f in _own_fields(c)}]
                raise UsageError(
                    f"--{name} {given[name]}: {self.method} has no such setting; {', '.join(owners)} have."
                )
        sharpness = self._sharpness(next(f.default for f in _own_fields(cls) if f.name == "sharpness"))
        return cls(**given, sharpness=sharpness)

    def _sharpness(self, default: Any) -> Any:
        names = [name for name in ("rho", "eta", "adapt_1d") if getattr(self, name) is not None]
        given = {name: getattr(self, name) for name in names}
        kind = type(default) if self.sharpness is None else SHARPNESS.get(self.sharpness)
        if kind not in (SAM, ASAM):
            if given:
                raise UsageError(
                    f"--{names[0]} {given[names[0]]}: there is no sharpness. Pass --sharpness sam or asam."
                )
            return None
        if kind is SAM and set(given) - {"rho"}:
            raise UsageError(f"--{names[-1]} {given[names[-1]]}: SAM has only rho. Pass --sharpness asam.")
        return kind(**given)


MethodOptions = dataclasses.make_dataclass(
    "MethodOptions",
    [
        ("method", Literal[tuple(METHODS)], option("sharp-unlearn methods tells what each does", "sharp_minmax")),
        *_SHARPNESS_FIELDS,
        *_all_fields(),
    ],
    bases=(_Methods,),
)
