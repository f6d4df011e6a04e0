"""Conditions on a column, "COLUMN SIGN VALUE": numbers are compared as numbers, dates as dates, anything else as words.

What a column holds is known from its type. A column of strings, where a reader may have found one odd cell among
numbers, is ordered only if every cell is a number, or every cell an ISO date; never by letters. An empty cell (null,
NaN, a class of -1) fulfils no condition, not even !=.
"""

import datetime
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from .words import READ_AS_EMPTY, moment, number, spelled

SIGNS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq, "!=": operator.ne, "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt
}  # fmt: skip
_SIGN = re.compile(r"==|!=|<=|>=|<|>|\bin\b")
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_LIST = re.compile(r"""\s*(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<bare>[^,]*?))\s*(?:,|$)""")
_TRUTH = {"true": True, "false": False, "1": True, "0": False}


@dataclass(frozen=True)
class Word:
    """A value as it was written; in quotes it is a word, whatever it looks like."""

    text: str
    quoted: bool = False


@dataclass(frozen=True)
class Condition:
    """text: all of it, for errors. words: what is compared with, one unless the sign is `in`."""

    text: str
    column: str
    sign: str
    words: Sequence[Word]

    @property
    def ordered(self) -> bool:
        return self.sign in ("<", "<=", ">", ">=")

    def refused(self, why: str) -> ValueError:
        return ValueError(f"--forget-filter {self.text!r}: {why}")

    def cannot(self, row: int, cell: Any, word: Word, remedy: str) -> ValueError:
        return self.refused(
            f"column {self.column!r}, row {row} holds {cell!r}, which cannot be compared with {word.text!r}. {remedy}"
        )


def holds(data: Any, condition: str) -> np.ndarray:
    """Rows of a table for which a condition holds, as a mask.

    A value is written as it is, or in quotes: 'label == 3', 'score > 0.9', "name in cat, 'sea lion'". Dates are ISO
    dates. Classes go by name or number. Raises ValueError for a condition that cannot be read or compared, and for one
    of which it is not clear what is meant.
    """
    parsed = parse(condition, data.column_names)
    keys, wanted = _comparable(parsed, cells_of(data, parsed.column), data.features[parsed.column])
    if parsed.ordered or parsed.sign == "!=":
        compare, value = SIGNS[parsed.sign], wanted[0]
        return np.array([key is not None and bool(compare(key, value)) for key in keys], dtype=bool)
    sought, found = set(wanted), {key for key in keys if key is not None}
    for word, value in zip(parsed.words, wanted, strict=True):
        if parsed.sign == "in" and value not in found:
            raise parsed.refused(f"no row of {parsed.column!r} holds {word.text!r}. Leave it out, or correct it.")
    return np.array([key is not None and key in sought for key in keys], dtype=bool)


def flags(data: Any, column: str) -> np.ndarray:
    """A column of true and false as a mask: booleans, 1 and 0, or these as words. Raises ValueError for other cells."""
    cells, names = cells_of(data, column), getattr(data.features[column], "names", None)
    if names is not None:  # what a class is called, not its number: "true" may well be class 0
        cells = [None if cell in (None, -1) else names[cell] for cell in cells]
    marked = np.zeros(len(cells), dtype=bool)
    for row, cell in enumerate(cells):
        word = cell.strip().lower() if isinstance(cell, str) else cell
        if isinstance(word, str) and word in _TRUTH:
            marked[row] = _TRUTH[word]
        elif isinstance(word, bool | int | float | Decimal) and word in (0, 1):
            marked[row] = bool(word)
        else:
            what = "is empty" if cell is None or cell != cell else f"holds {cell!r}"
            raise ValueError(
                f"--forget-column {column}: must hold true and false (or 1 and 0) in each row; row {row} {what}. "
                f"Correct it, or use a condition: --forget-filter '{column} == VALUE'."
            )
    return marked


def cells_of(data: Any, column: str) -> list:
    """The cells of one column as Python values; others are not read, so pictures are not decoded."""
    if column not in data.column_names:
        raise ValueError(f"{column!r} is no column of the training set, which has {data.column_names}.")
    return list(data.with_format(None)[column][:])


def parse(condition: str, columns: Sequence[str]) -> Condition:
    """What a condition says. The column ends where a sign follows the name of one: names may hold signs and blanks."""
    signs = list(_SIGN.finditer(condition))
    parts = [(condition[: s.start()].strip(), s.group(), condition[s.end() :].strip()) for s in signs]
    named = [part for part in parts if part[0] in columns] or [p for p in parts if _unquoted(p[0]).text in columns]
    if not parts or not parts[0][0] or not (named or parts)[0][2]:
        raise ValueError(
            f"--forget-filter {condition!r}: write COLUMN SIGN VALUE, e.g. 'label == 3' or 'score > 0.9'; signs are == "
            "!= < <= > >= and in."
        )
    if not named:
        raise ValueError(
            f"--forget-filter {condition!r}: {parts[0][0]!r} is no column of the training set, which has "
            f"{list(columns)}."
        )
    column, sign, value = named[0]
    column = column if column in columns else _unquoted(column).text
    bare = Condition(condition, column, sign, ())
    if value[0] in "=<>!":
        raise bare.refused(f"{sign}{value[0]} is no sign. Write == != < <= > >= or in, or the value in quotes.")
    words = _listed(bare, value) if sign == "in" else [_unquoted(value)]
    if any(not word.quoted and word.text[:1] in ("'", '"') for word in words):
        raise bare.refused(f"{value} opens a quote and does not close it. Close it, or leave it out.")
    return Condition(condition, column, sign, words)


def _unquoted(text: str) -> Word:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" and text[0] not in text[1:-1]
    return Word(text[1:-1], True) if quoted else Word(text)


def _listed(condition: Condition, text: str) -> list[Word]:
    if text[0] + text[-1] in ("[]", "()", "{}"):
        text = text[1:-1].strip()
    words, place = [], 0
    while place <= len(text):
        found = _LIST.match(text, place)
        quoted = found["bare"] is None
        word = (found["double"] if found["double"] is not None else found["single"]) if quoted else found["bare"]
        if not quoted and not word:
            raise condition.refused(f"an empty value in the list {text!r}. Leave out the comma, or write ''.")
        words.append(Word(word, quoted))
        if not text[place : found.end()].endswith(",") or found.end() == place:
            break
        place = found.end()
    return words


def _comparable(condition: Condition, cells: list, feature: Any) -> tuple[list, list]:
    """(the cells, None where they are empty; the values), of one kind that Python compares without rounding."""
    names, kind = getattr(feature, "names", None), str(getattr(feature, "dtype", None) or type(feature).__name__)
    if names is not None:
        return [None if cell in (None, -1) else cell for cell in cells], [
            _class_number(condition, word, names) for word in condition.words
        ]
    if kind in ("string", "large_string", "string_view"):
        return _strings(condition, cells)
    if kind == "bool":
        return cells, [_truth(condition, word) for word in condition.words]
    if kind.startswith(("int", "uint", "decimal")):
        return cells, [_numeric(condition, word) for word in condition.words]
    if kind == "Json" and not any(isinstance(cell, list | dict) for cell in cells):
        return _strings(condition, [cell if cell is None else str(cell) for cell in cells])  # of more than one kind
    if kind.startswith(("float", "double", "half")):
        return _floats(condition, cells, kind)
    if kind.startswith(("timestamp", "date")):
        return _dates(condition, cells, cells)
    raise condition.refused(
        f"column {condition.column!r} holds {kind}. Name one of numbers, dates, words, or true and false."
    )


def _class_number(condition: Condition, word: Word, names: Sequence[str]) -> int:
    number = int(word.text) if re.fullmatch("[0-9]{1,9}", word.text) else None
    name = names.index(word.text) if word.text in names else None
    if condition.ordered and any(re.fullmatch("[0-9]+", each) and int(each) != i for i, each in enumerate(names)):
        raise condition.refused("the classes are named by other numbers than they have. List them: 'COLUMN in A, B'.")
    if not word.quoted and name is not None and number is not None and name != number and number < len(names):
        raise condition.refused(
            f"{word.text} is the name of class {name} and the number of class {names[number]!r}. Write the name in "
            f"quotes, {condition.column} {condition.sign} '{word.text}'."
        )
    if name is not None and not condition.ordered:
        return name
    if number is None or word.quoted or number >= len(names):
        raise condition.refused(
            f"column {condition.column!r} holds classes, which cannot be compared with {word.text!r}. Name one of "
            f"{list(names)[:10]}, or its number, 0 to {len(names) - 1}; < and > take numbers."
        )
    return number


def _truth(condition: Condition, word: Word) -> bool:
    if word.text.lower() not in _TRUTH or condition.ordered:
        raise condition.refused(
            f"column {condition.column!r} holds true and false, which cannot be compared with {word.text!r}. Write "
            f"{condition.column} == true, or == false."
        )
    return _TRUTH[word.text.lower()]


def _numeric(condition: Condition, word: Word) -> int | Decimal:
    value = number(word.text)
    if value is None:
        raise condition.refused(
            f"column {condition.column!r} holds numbers, which cannot be compared with {word.text!r}. Write a number."
        )
    return value


def _floats(condition: Condition, cells: list, kind: str) -> tuple[list, list]:
    """Both sides as the column keeps them: 0.9 in a column of float32 is the float32 nearest to 0.9."""
    dtype = np.dtype({"float": "float32", "double": "float64", "half": "float16"}.get(kind, kind))
    values = []
    for word in condition.words:
        value = _numeric(condition, word)
        with np.errstate(over="ignore"):
            rounded = float(dtype.type(float(value)))
        if not np.isfinite(rounded) or isinstance(value, int) and abs(value) > 2 ** (np.finfo(dtype).nmant + 1):
            raise condition.refused(
                f"column {condition.column!r} holds {dtype}, which does not tell {word.text} from its neighbours. Keep "
                "such numbers as whole numbers or text (a CSV column with an empty cell is read as floats)."
            )
        values.append(rounded)
    return [None if cell is None or cell != cell else cell for cell in cells], values


def _strings(condition: Condition, cells: list) -> tuple[list, list]:
    if not condition.ordered:
        return cells, [_as_word(condition, word, cells) for word in condition.words]
    word = condition.words[0]
    if number(word.text) is not None:
        read, what = number, "number"
    elif moment(word.text) is not None:
        read, what = moment, "date like 2024-01-31"
    else:
        row, cell = next(((row, cell) for row, cell in enumerate(cells) if cell and cell.strip()), (0, None))
        raise condition.cannot(row, cell, word, "Words have no order: give a number, or an ISO date, 2024-01-31.")
    keys = [None if cell is None or not cell.strip() else read(cell) for cell in cells]
    for row, (cell, key) in enumerate(zip(cells, keys, strict=True)):
        if key is None and cell is not None and cell.strip():
            remedy = f"Each cell must be a {what}: correct it, or leave it empty."
            raise condition.cannot(row, cell, word, remedy)
    return _dates(condition, keys, cells) if read is moment else (keys, [read(word.text)])


def _as_word(condition: Condition, word: Word, cells: list) -> str:
    """The word, if no cell says the same in another spelling: 3 and 3.0, true and True, or a blank at the end."""
    gone = word.text not in cells
    if gone and word.text.strip().lower() in READ_AS_EMPTY and None in cells:
        raise condition.cannot(
            cells.index(None), None, word, "Such words may have been read as empty cells: use another."
        )
    meant = spelled(word.text)
    others = set() if word.quoted else {cell for cell in set(cells) - {None, word.text} if spelled(cell) == meant}
    for row, cell in enumerate(cells):
        if cell in others:
            remedy = f"It is the same written otherwise: make them alike, or quote '{word.text}' for these letters."
            raise condition.cannot(row, cell, word, remedy)
    if gone and condition.sign == "!=":
        raise condition.refused(
            f"no row of column {condition.column!r} holds {word.text!r}. Leave the condition out, or correct it."
        )
    return word.text


def _dates(condition: Condition, keys: list, cells: list) -> tuple[list, list]:
    values = []
    for word in condition.words:
        value = moment(word.text)
        if value is None:
            raise condition.refused(
                f"column {condition.column!r} holds dates, which cannot be compared with {word.text!r}. Write an ISO "
                "date: 2024-01-31, or 2024-01-31T12:00."
            )
        values.append(value)
    keys = [_midnight(key) for key in keys]
    for row, key in enumerate(keys):
        for word, value in zip(condition.words, values, strict=True):
            if key is not None and (key.tzinfo is None) != (value.tzinfo is None):
                remedy = "Write both with a time zone (2024-01-31T12:00+00:00), or both without."
                raise condition.cannot(row, str(cells[row]), word, remedy)
            whole_day = _DAY.fullmatch(word.text) and condition.sign not in ("<", ">=")
            if whole_day and key is not None and key != value and key.date() == value.date():
                remedy = f"Write a time, {word.text}T00:00, or two conditions: >= this day, and < the next."
                raise condition.cannot(row, str(cells[row]), word, remedy)
    return keys, values


def _midnight(key: Any) -> Any:
    """A day as its first moment, so that it can be compared with one."""
    if isinstance(key, datetime.date) and not isinstance(key, datetime.datetime):
        return datetime.datetime(key.year, key.month, key.day)
    return key
