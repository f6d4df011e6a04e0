"""Any table, condition or list of rows gives the rows that a plain reading gives, or one ValueError that names argument
and remedy; never another exception, never other rows."""

import csv
import io
import json
import math
import re
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optional_packages import datasets

from hf_sharp_unlearn.data.conditions import flags, holds
from hf_sharp_unlearn.data.row_lists import row_numbers
from hf_sharp_unlearn.data.tables import read_table

quick = settings(
    max_examples=150, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TOTAL = 12
REMEDY = re.compile("write|correct|leave|give|name|save|close|keep|use another|rows go|quote|list|make them", re.I)
COMPARE = {"==": "__eq__", "!=": "__ne__", "<": "__lt__", "<=": "__le__", ">": "__gt__", ">=": "__ge__"}

whole = st.integers(-(2**62), 2**62) | st.integers(-9, 9)
odd = st.sampled_from(["", " ", "n/k", "NA", "nan", "inf", "1,000", "0x10", "1_0", "٣", "３", "True", "true", "--3"])
numeral = st.one_of(
    st.integers(-20, 20).map(str),
    st.decimals(-99, 99, places=2, allow_nan=False).map(str),
    st.sampled_from(["03", "3.0", "+3", " 3", "3e0", "1e3", ".5", "5.", "9007199254740993", "9007199254740992"]),
)
word = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=5)
sign = st.sampled_from([*COMPARE, "in"])


def refused(error, *names):
    text = str(error)
    assert all(name in text for name in names) and REMEDY.search(text), text


def exact(text):
    """The number that a numeral is; None for what is no numeral."""
    try:
        value = Decimal(text.strip()) if re.fullmatch(r"\s*[+-]?[0-9.]+([eE][+-]?[0-9]+)?\s*", text) else None
    except ArithmeticError:
        return None
    return value


@quick
@given(st.lists(st.none() | numeral | odd | word, min_size=1, max_size=8), sign, numeral | odd | word)
def test_columns_of_strings(cells, sign, value):
    table = datasets.Dataset.from_dict({"c": cells}, datasets.Features({"c": datasets.Value("string")}))
    try:
        rows = holds(table, f"c {sign} {value}")
    except ValueError as error:
        return refused(error, "--forget-filter")
    value = value.strip()
    unquoted = value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
    if sign in COMPARE and sign not in ("==", "!="):
        wanted = exact(unquoted)
        if wanted is None:  # dates: drawn of themselves below
            return
        full = [(i, cell) for i, cell in enumerate(cells) if cell is not None and cell.strip()]
        assert all(exact(cell) is not None for _, cell in full), "a cell that is no number was compared"
        expected = [i for i, cell in full if getattr(exact(cell), COMPARE[sign])(wanted)]
    else:
        parts = [unquoted] if sign != "in" else value.strip("[](){} ").split(",")
        words = [unquoted] if sign != "in" else [part.strip().strip("'\"") for part in parts]
        expected = [i for i, cell in enumerate(cells) if cell is not None and (cell in words) != (sign == "!=")]
        if unquoted == value and exact(value) is not None and sign != "in":
            same = {cell for cell in cells if cell is not None and exact(cell) == exact(value)}
            assert same <= {value}, "the same number, written otherwise, was taken for another"
    assert np.flatnonzero(rows).tolist() == expected


@quick
@given(
    st.sampled_from(["int64", "uint8", "float64", "float32", "bool"]),
    st.lists(st.none() | st.integers(0, 20), min_size=1, max_size=8),
    sign,
    numeral | odd | word,
)
def test_columns_of_numbers(kind, cells, sign, value):
    values = [cell if cell is None or kind != "bool" else cell > 9 for cell in cells]
    table = datasets.Dataset.from_dict({"c": values}, datasets.Features({"c": datasets.Value(kind)}))
    try:
        rows = holds(table, f"c {sign} {value}")
    except ValueError as error:
        return refused(error, "--forget-filter")
    if kind == "bool" or sign == "in" or exact(value) is None:
        return
    wanted = exact(value) if "float" not in kind else Decimal(float(np.dtype(kind).type(float(value))))
    kept = [(i, Decimal(cell)) for i, cell in enumerate(values) if cell is not None]
    assert np.flatnonzero(rows).tolist() == [i for i, cell in kept if getattr(cell, COMPARE[sign])(wanted)]


@quick
@given(st.lists(st.none() | st.datetimes(), min_size=1, max_size=6), sign, st.datetimes() | st.dates(), st.booleans())
def test_columns_of_dates(cells, sign, value, as_text):
    feature = datasets.Value("string" if as_text else "timestamp[us]")
    kept = [cell and cell.isoformat() if as_text else cell for cell in cells]
    table = datasets.Dataset.from_dict({"c": kept}, datasets.Features({"c": feature}))
    try:
        rows = holds(table, f"c {sign} {value.isoformat()}")
    except ValueError as error:
        return refused(error, "--forget-filter")
    if sign in COMPARE:
        moment = value if hasattr(value, "hour") else type(cells[0] or value)(value.year, value.month, value.day)
        if not hasattr(moment, "hour"):
            return
        expected = [i for i, cell in enumerate(cells) if cell is not None and getattr(cell, COMPARE[sign])(moment)]
        assert np.flatnonzero(rows).tolist() == expected


@quick
@given(st.lists(st.none() | odd | word | st.sampled_from(["1", "0", "TRUE", "false", " True"]), min_size=1, max_size=6))
def test_flags_in_words(cells):
    table = datasets.Dataset.from_dict({"c": cells}, datasets.Features({"c": datasets.Value("string")}))
    try:
        marked = flags(table, "c")
    except ValueError as error:
        return refused(error, "--forget-column c", "row ")
    assert [cell.strip().lower() in ("true", "1") for cell in cells] == marked.tolist()


def listed(rows, form, line_end, mark, header):
    """The content of a file that names rows, as bytes, and its name."""
    if form == "json":
        text = json.dumps({header: rows} if header else rows)
    elif form == "jsonl":
        text = line_end.join(json.dumps({"row": row} if header else row) for row in rows)
    elif form == "csv":
        text = line_end.join(([header] if header else []) + [str(row) for row in rows])
    else:
        text = {"txt": line_end, "one line": ", "}[form].join(map(str, rows))
    name = "rows." + (form if form in ("json", "jsonl", "csv") else "txt")
    return name, text.encode("utf-8-sig" if mark else "utf-8")


@quick
@given(
    st.lists(st.integers(-2, TOTAL + 2) | st.sampled_from([2.5, 3.0, math.nan, True, None, "x", 10**30]), max_size=8),
    st.sampled_from(["txt", "one line", "csv", "json", "jsonl"]),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
    st.booleans(),
    st.sampled_from(["", "row", "forget_idx"]),
)
def test_lists_of_rows(tmp_path, rows, form, line_end, mark, header):
    name, content = listed(rows, form, line_end, mark, header)
    path = tmp_path / name
    path.write_bytes(content)
    plain = all(type(row) in (int, float) and row == row and row == int(row) and 0 <= row < TOTAL for row in rows)
    right = plain and rows and len(set(rows)) == len(rows)
    try:
        found = row_numbers([str(path)], TOTAL)
    except ValueError as error:
        refused(error, "--forget-indices")
        ambiguous = form == "csv" and not header and rows and str(rows[0]) == "0"
        assert not right or ambiguous, "a plain list was refused"
    else:
        assert right and found.tolist() == sorted(int(row) for row in rows)


@quick
@given(
    st.sampled_from(["txt", "csv", "json", "jsonl", "npy", "npz", "parquet", "dat"]),
    st.binary(max_size=40) | st.text("0123456789,;.\t\n\r -+eE\"'[]{}:truefalsrow#", max_size=40).map(str.encode),
)
def test_any_bytes_as_a_list_of_rows(tmp_path, ending, content):
    path = tmp_path / f"rows.{ending}"
    path.write_bytes(content)
    try:
        found = row_numbers([str(path)], TOTAL)
    except ValueError as error:
        return refused(error, "--forget-indices")
    assert found.dtype == np.int64 and found.ndim == 1 and len(set(found.tolist())) == len(found)
    assert all(0 <= row < TOTAL for row in found)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # readers leave files open
@settings(quick, max_examples=25)
@given(
    st.lists(st.tuples(word.filter(str.strip), st.integers(0, 2)), min_size=1, max_size=4),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from(["utf-8", "utf-8-sig", "latin-1", "utf-16"]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_tables_of_any_encoding_and_separator(tmp_path, rows, separator, encoding, line_end):
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=separator, lineterminator=line_end, quoting=csv.QUOTE_ALL)
    writer.writerows([("words", "label"), *rows])
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.csv"
    path.write_bytes(file.getvalue().encode(encoding, errors="replace"))
    try:
        table = read_table(str(path))
    except ValueError as error:
        return refused(error, str(path))
    if separator == "," and encoding.startswith("utf-8"):
        assert table["label"][:] == [label for _, label in rows]
        assert table.column_names == ["words", "label"]
