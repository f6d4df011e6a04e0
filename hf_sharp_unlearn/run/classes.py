"""How many classes a model tells apart, and whether a data set's labels are among them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import Subset

from ..data import ImagesInMemory, classes_of, inner_of, judges_samples, transform_of
from ..methods import Method
from ..runtime import evaluating, isolated_rng
from ..step import counted_items, logits_of


def classes_to_draw(
    model: nn.Module, method: Method, first: Callable[[], dict], label_names: Sequence[str], shift: bool
) -> int | None:
    """Number of classes from which a random label is drawn: the method's, the head's, or the length of the logits. None
    for a method that draws none. first(): a forget sample as a batch of one, on the model's device."""
    if not method.relabel:
        return None
    name, chosen, classes = type(method).__name__, method.classes, classes_of(model)
    if classes is None and chosen is None:
        with isolated_rng(), evaluating(model), torch.no_grad():
            inputs = first()
            logits = logits_of(model(**inputs))
            counted_items(inputs, logits, label_names, shift)  # classes must come last
            classes = logits.shape[-1]
    if chosen is not None and classes is not None and chosen > classes:
        raise ValueError(f"{name}(classes={chosen}): the model's head has {classes}. Leave classes out.")
    classes = chosen or classes
    if classes < 2:
        raise ValueError(
            f"{name}: the model has {classes} output(s), there is no other label to "
            "draw. Random labels need a classifier or a language model; pass classes= if the head does not tell."
        )
    return classes


def check_classes(name: str, dataset: Any, item: Any, labels: list[str], model: nn.Module) -> None:
    column = next((label for label in labels if isinstance(item, Mapping) and label in item), None)
    classes = classes_of(model)
    if column is None or classes is None:
        return
    rows = _label_rows(dataset, column)
    empty = [row for row, label in enumerate(rows or []) if label is None]
    if empty:
        raise ValueError(f"{name}: {len(empty)} rows have no label ({column}), e.g. {empty[:5]}. Leave them out.")
    try:
        values = torch.as_tensor(rows).reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        try:
            values = torch.cat([torch.as_tensor(row).reshape(-1) for row in rows or []])
        except (TypeError, ValueError, RuntimeError):
            return  # labels of another kind (strings, say): a transform or collator turns them into numbers
    if values.is_floating_point():
        if rows and not isinstance(rows[0], Sequence | torch.Tensor) and judges_samples(type(inner_of(model))):
            raise ValueError(
                f"{name}: column {column!r} holds fractions, e.g. {values[:3].tolist()}, and the model tells {classes} "
                "classes apart, which are whole numbers. Turn them into integers; a regression has num_labels=1 or "
                "problem_type='regression' in its config."
            )
        return
    wrong = values[((values < 0) | (values >= classes)) & (values != -100)]
    if len(wrong):
        raise ValueError(
            f"{name}: column {column!r} has labels outside the model's {classes} classes, e.g. "
            f"{wrong[:5].tolist()}. Labels are 0 to {classes - 1}; -100 is ignored."
        )


def _label_rows(dataset: Any, column: str) -> list | None:
    """The label of every sample where no sample has to be loaded for it: a table's column, or a list in memory."""
    if isinstance(dataset, Subset):
        rows = _label_rows(dataset.dataset, column)
        return None if rows is None else [rows[i] for i in dataset.indices]
    if isinstance(dataset, ImagesInMemory):
        return dataset.labels[dataset.rows.to(dataset.device)].tolist()
    transform = transform_of(dataset)
    if hasattr(transform, "label_column"):
        return list(dataset.with_format(None)[transform.label_column])
    if hasattr(dataset, "column_names") and column in dataset.column_names:
        if dataset.format["type"] == "custom":  # the user's transform decides what a label is
            return None
        return list(dataset.with_format(None)[column])
    if isinstance(dataset, list | tuple) and all(isinstance(row, Mapping) and column in row for row in dataset):
        return [row[column] for row in dataset]
    return None
