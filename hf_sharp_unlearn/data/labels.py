"""The label column of a table as a model takes it: classes by the model's numbers, or values for a model without.

What a file holds is what its reader made of it: empty cells turn whole numbers into fractions, True and False into
truth values, and class folders are numbered in the order of the alphabet. A label is taken only where it can mean one
thing; anything else is refused with column, row and value.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .classes import class_names, judges_samples, problem_of
from .configs import config_of, model_class

_NUMBERS = ("int", "uint", "float", "double", "half", "bool", "decimal")


def as_labels(data: Any, label: str, model: str, spec: str, like: str | None = None) -> Any:
    """The table with its label column as the model takes it. like: another model, whose numbers the labels get.

    Raises ValueError for rows without a label, and for labels that the model does not have or that can mean several
    things.
    """
    import datasets

    try:
        config = config_of(like or model)
        kind = model_class(config)
    except (OSError, ValueError):
        config = kind = None  # a model that is not of transformers, or not known yet
    one_a_sample = kind is not None and judges_samples(kind)
    if isinstance(data.features[label], datasets.List) and not one_a_sample:
        return data  # a label a token
    values = list(data.with_format(None)[label][:])
    _refuse_missing(values, label, spec)
    if kind is None:
        return data
    problem = problem_of(config, kind)
    if problem is not None:
        return _with_column(data, label, _numbers_for(values, problem, config.num_labels, label, spec), float32=True)
    numbers = _numbers(data, values, label, config, one_a_sample, spec)
    if like not in (None, model):
        _refuse_other_numbers(data, label, model, like, spec)
    column = [numbers[value] for value in values]
    return data if column == values and type(values[0]) is int else _with_column(data, label, column)


def _refuse_other_numbers(data: Any, label: str, model: str, like: str, spec: str) -> None:
    """One model has no names for its classes, and the other numbers those of the data otherwise: the first one may
    follow either."""
    configs = [config_of(name) for name in (model, like)]
    names = [class_names(config) for config in configs]
    values = list(data.with_format(None)[label][:])
    numbers = [_numbers(data, values, label, config, True, spec) for config in configs]
    if (names[0] is None) == (names[1] is None) or numbers[0] == numbers[1]:
        return
    unnamed, named = (model, like) if names[0] is None else (like, model)
    raise ValueError(
        f"{unnamed!r} has no names for its classes, {named!r} has {(names[0] or names[1])[:10]}, which is not the "
        f"order in which {spec!r} has them: how the first one numbers them cannot be told. Give its config the names "
        "(id2label, label2id)."
    )


def _refuse_missing(values: Sequence, label: str, spec: str) -> None:
    empty = [
        row
        for row, value in enumerate(values)
        if value is None or isinstance(value, float) and math.isnan(value) or isinstance(value, str) and not value
        or isinstance(value, list) and any(part is None for part in value)
    ]  # fmt: skip
    if empty:
        raise ValueError(
            f"{spec!r}: {len(empty)} rows have no label ({label}), e.g. {empty[:5]}. Leave them out, or name another "
            "column (label)."
        )


def _numbers(data: Any, values: list, label: str, config: Any, one_a_sample: bool, spec: str) -> Mapping[Any, int]:
    """{value of the column: the model's number of it}."""
    import datasets

    feature = data.features[label]
    count = getattr(config, "num_labels", None) if one_a_sample else None
    if isinstance(feature, datasets.ClassLabel):
        _refuse_missing([None if value < 0 else value for value in values], label, spec)
        ids = numbers_by_name(feature.names, config, spec, declared=True)
        return {number: ids[name] for number, name in enumerate(feature.names)}
    found = _distinct(values, label, spec)
    if all(isinstance(value, str) for value in found):
        return numbers_by_name(sorted(found), config, spec)
    if all(isinstance(value, bool) for value in found):
        return _truth(config, count, label, spec)
    whole = {value: int(value) for value in found if isinstance(value, int | float) and float(value).is_integer()}
    for value in found:
        if value not in whole or isinstance(value, bool):
            _refuse(values, label, value, "no class: classes are whole numbers or names. A model of values has "
                    "num_labels=1 or problem_type='regression' in its config", spec)  # fmt: skip
    wrong = sorted(value for value in found if count is not None and not 0 <= value < count and value != -100)
    if wrong:
        names = class_names(config)
        raise ValueError(
            f"{spec!r}: column {label!r} has labels outside the model's {count} classes, e.g. {wrong[:5]} (row "
            f"{values.index(wrong[0])}). Labels are 0 to {count - 1}{f', {names[:10]}' if names else ''}; -100 "
            "is ignored."
        )
    return whole


def _distinct(values: list, label: str, spec: str) -> set:
    for value in values:
        if not isinstance(value, str | bool | int | float):
            _refuse(values, label, value, "no class of a model that tells one class a sample. A model of several "
                    "labels a sample has problem_type='multi_label_classification' in its config", spec)  # fmt: skip
    return set(values)


def _truth(config: Any, count: int | None, label: str, spec: str) -> dict[bool, int]:
    """False and True are the classes 0 and 1, or those that the model calls so."""
    names = class_names(config)
    called = {name.lower(): number for number, name in enumerate(names or [])}
    if {"false", "true"} <= called.keys():
        return {False: called["false"], True: called["true"]}
    if count not in (None, 2) or names is not None:
        raise ValueError(
            f"{spec!r}: label={label!r} holds True and False, the model has {names or f'{count} classes'}: which is "
            "which cannot be told. Write the classes as the model's names or numbers."
        )
    return {False: 0, True: 1}


def numbers_by_name(found: Sequence[str], config: Any, spec: str, declared: bool = False) -> dict[str, int]:
    """{name: the model's number of it} through label2id. declared: `found` has the order that the table gives them.

    A model without names takes numbers (folders "0", "1", "10") by their value, and as many declared classes as it has
    in their order. Raises ValueError for anything else.
    """
    ids = {str(name): int(number) for name, number in (getattr(config, "label2id", None) or {}).items()}
    if all(name in ids for name in found):
        return {name: ids[name] for name in found}
    generic = class_names(config) is None
    if generic and all(re.fullmatch(r"\d+", name) for name in found):
        numbers = {name: int(name) for name in found}
        if len(set(numbers.values())) == len(found) and max(numbers.values()) < len(ids):
            return numbers
    elif generic and declared and len(found) == len(ids):
        if list(found) == sorted(found) and list(found) != sorted(found, key=_natural):
            raise ValueError(
                f"{spec!r} has the classes {list(found)[:10]}, in the order of the alphabet and not of their numbers, "
                "and the model has no names for its own: which is which cannot be told. Give the model's config the "
                "names (id2label, label2id)."
            )
        return {name: number for number, name in enumerate(found)}
    missing = [name for name in found if name not in ids]
    raise ValueError(
        f"{spec!r} has the classes {list(found)[:10]}, the model has {sorted(ids, key=ids.get)[:10]}: {missing[:5]} "
        "cannot be told. Give the model's config the names (label2id), or a column of numbers (label)."
    )


def _natural(name: str) -> list:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _numbers_for(values: list, problem: str, count: int, label: str, spec: str) -> list:
    """Values for a model without classes: a number a sample, or a list of as many as the model has outputs."""
    several = problem == "multi_label_classification" or count > 1
    for value in values:
        parts = value if several and isinstance(value, list) else [value]
        right = len(parts) == count and isinstance(value, list) == several
        if not right or not all(isinstance(part, bool | int | float) and math.isfinite(part) for part in parts):
            what = f"a list of {count} numbers" if several else "a number"
            _refuse(values, label, value, f"not {what}, as the model takes (problem_type={problem!r}, num_labels="
                    f"{count} in its config)", spec)  # fmt: skip
        if problem == "multi_label_classification" and not all(0 <= part <= 1 for part in parts):
            _refuse(values, label, value, "not between 0 and 1, as several labels a sample are", spec)
    return [list(map(float, value)) if several else float(value) for value in values]


def _refuse(values: list, label: str, value: Any, why: str, spec: str) -> None:
    row = next(row for row, other in enumerate(values) if other is value or other == value)
    raise ValueError(f"{spec!r}, label={label!r}: row {row} holds {str(value)[:60]!r}, {why}. Correct the column, or "
                     "name another one.")  # fmt: skip


def _with_column(data: Any, label: str, column: list, float32: bool = False) -> Any:
    import datasets

    kind = datasets.Value("float32" if float32 else "int64")
    feature = datasets.List(kind) if column and isinstance(column[0], list) else kind
    place = data.column_names.index(label)
    table = data.remove_columns(label).add_column(label, column, feature=feature)
    names = [name for name in data.column_names if name != label]
    return table.select_columns([*names[:place], label, *names[place:]])
