"""What is wrong with a file of samples, and in which line: readers keep that to themselves, or count otherwise."""

import csv
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from .words import number


def reason(error: BaseException) -> str:
    """What an error says, or the one behind it: `datasets` often says only that there was one."""
    while "error occurred" in str(error) and (error.__cause__ or error.__context__):
        error = error.__cause__ or error.__context__
    return first_line(error)


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def fault_in(path: str) -> str | None:
    """The first fault of a text file that could not be read, with its line; None if none is found. A saved set may
    have no row either."""
    ending, state = os.path.splitext(path)[1], os.path.join(path, "state.json")
    if os.path.isfile(state):
        with open(state, encoding="utf-8") as file:
            return None if json.load(file).get("_data_files") else "it has no row"
    if os.path.isdir(path):
        saved = os.path.isfile(os.path.join(path, "dataset_dict.json"))
        return None if saved else _in_folder(path, fault_in)
    if not os.path.isfile(path) or ending not in (".csv", ".json", ".jsonl"):
        return None
    if os.path.getsize(path) == 0:
        return "the file is empty"
    finders = {".csv": _of_csv, ".json": _of_json, ".jsonl": _of_json_lines}
    return _of_encoding(path) or finders[ending](path)


def unread(path: str) -> str | None:
    """A fault that the readers pass over. Of a CSV file: a first line longer than the header, for which pandas takes
    the first column for row names and the others for what they are not; a name that comes twice. Of a JSON file: bytes
    that are no utf-8, which are found only where a cell is asked for."""
    ending = os.path.splitext(path)[1]
    if os.path.isdir(path):
        return _in_folder(path, unread)
    if ending in (".json", ".jsonl") and os.path.isfile(path):
        return _of_encoding(path)
    if ending != ".csv" or not os.path.isfile(path):
        return None
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = _fields(file)
            (_, header), (line, first) = next(lines), next(lines)
    except (StopIteration, UnicodeDecodeError, csv.Error):
        return None
    if len(first) > len(header):
        return f"line {line} has {len(first)} fields, the header has {len(header)}"
    twice = next((name for name in header if name and header.count(name) > 1), None)
    return None if twice is None else f"line 1 names column {twice!r} twice"


def _in_folder(folder: str, look: Callable[[str], str | None]) -> str | None:
    """The first fault of the files in a folder, with the file's name; folders in it are not looked into."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_file() and (fault := look(entry.path)):
            return f"{entry.name}: {fault}"
    return None


def _of_encoding(path: str) -> str | None:
    with open(path, "rb") as file:
        for place, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return (
                    f"line {place} is not utf-8, byte 0x{line[error.start]:02x} at position {error.start} of the line "
                    f"({error.reason}); save the file in this encoding"
                )
    return None


def _fields(file: Any) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(file)
    return ((reader.line_num, fields) for fields in reader if fields)


def _of_csv(path: str) -> str | None:
    """A line with more fields than the header, a quote that nothing closes, or a word in a column of numbers."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        content = file.read()
        file.seek(0)
        header, numeric, opened = None, {}, 0
        try:
            for line, fields in _fields(file):
                if header is None:
                    header, numeric = fields, dict.fromkeys(range(len(fields)))
                    continue
                if len(fields) > len(header):
                    return f"line {line} has {len(fields)} fields, the header has {len(header)}"
                for column in list(numeric):
                    cell = fields[column] if column < len(fields) else ""
                    if number(cell) is not None:
                        numeric[column] = line
                    elif cell.strip() and numeric[column]:
                        return (
                            f"line {line}, column {header[column]!r} holds {cell[:40]!r} where the lines above hold "
                            "numbers"
                        )
                    elif cell.strip():
                        del numeric[column]
                opened = line
        except csv.Error as error:
            return f"line {opened + 1}: {error}"
    if content.count('"') % 2:
        return f"a quote is opened and not closed, from line {_last_quote(content)}"
    return None if opened else "it has a header and no row"


def _last_quote(content: str) -> int:
    """The line where the field begins that goes to the end of the file."""
    inside, start = False, 0
    for place in (i for i, letter in enumerate(content) if letter == '"'):
        inside = not inside
        start = place if inside else start
    return content.count("\n", 0, start) + 1


def _of_json(path: str) -> str | None:
    with open(path, encoding="utf-8-sig") as file:
        content = file.read()
    try:
        found = json.loads(content)
    except ValueError as error:
        if "\n" in content.strip() and content.lstrip()[:1] == "{":
            return _of_json_lines(path) or f"it is no JSON: {error}"
        return f"it is no JSON: {error}"
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        return "it holds no list of objects, one a row"
    return _of_kinds(enumerate(found), "row") if found else "it has no row"


def _of_json_lines(path: str) -> str | None:
    rows = []
    with open(path, encoding="utf-8-sig") as file:
        for place, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                rows.append((place, json.loads(line.rstrip("\n"))))
            except json.JSONDecodeError as error:
                return f"line {place} is no JSON: {error.msg} at column {error.colno}"
            if not isinstance(rows[-1][1], dict):
                return f"line {place} is no object with the columns' names"
    return _of_kinds(rows, "line") if rows else "it has no row"


def _of_kinds(rows: Any, unit: str) -> str | None:
    """The first cell that is of another kind than those above it in its column."""
    kinds: dict[str, tuple[str, int]] = {}
    for place, row in rows:
        for column, value in row.items():
            kind = "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
            before = kinds.setdefault(column, (kind, place)) if value is not None else (kind, place)
            if before[0] != kind:
                return f"{unit} {place}, column {column!r} holds {value!r} ({kind}), {unit} {before[1]} a {before[0]}"
    return None
