"""Which rows are to be forgotten: by column, numbers, condition; what is said of input that cannot be used."""

import json

import numpy as np
import pytest
from optional_packages import datasets

from hf_sharp_unlearn.data.tables import forget_rows, is_hub_id, read_table


@pytest.fixture(scope="module")
def table():
    features = datasets.Features(
        {"label": datasets.ClassLabel(names=["cat", "dog", "sea lion"]), "score": datasets.Value("float32"),
         "marked": datasets.Value("bool"), "flag": datasets.Value("int64"), "who": datasets.Value("string")}
    )  # fmt: skip
    columns = {"label": [0, 1, 2, 0, 1, 2], "score": [0.1, 0.9, 0.5, 0.7, 0.2, 0.8], "flag": [0, 1, 0, 0, 0, 1],
               "marked": [True, False, False, True, False, False], "who": ["a", "b", "a", "c", "a", "b"]}  # fmt: skip
    return datasets.Dataset.from_dict(columns, features)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"column": "marked"}, [0, 3]),
        ({"column": "flag"}, [1, 5]),
        ({"indices": ["4", "0"]}, [0, 4]),
        ({"conditions": ["label == cat"]}, [0, 3]),
        ({"conditions": ["label == 1"]}, [1, 4]),
        ({"conditions": ["label in cat, 'sea lion'"]}, [0, 2, 3, 5]),
        ({"conditions": ["score > 0.5"]}, [1, 3, 5]),
        ({"conditions": ["score>=0.5", "label != dog"]}, [2, 3, 5]),
        ({"conditions": ["score<0.15"]}, [0]),
        ({"conditions": ["who == a"]}, [0, 2, 4]),
        ({"conditions": ["who in 'b',c", "marked == false"]}, [1, 5]),
    ],
)
def test_rows_by_column_number_and_condition(table, given, expected):
    assert forget_rows(table, **given).tolist() == expected


@pytest.mark.parametrize("name", ["rows.npy", "rows.json", "rows.txt"])
def test_rows_from_a_file(table, tmp_path, name):
    path = tmp_path / name
    if name.endswith("npy"):
        np.save(path, np.array([5, 2]))
    else:
        path.write_text(json.dumps([5, 2]) if name.endswith("json") else "5\n2\n")
    assert forget_rows(table, indices=[str(path)]).tolist() == [2, 5]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "named by nothing: give exactly one"),
        ({"column": "marked", "indices": ["1"]}, "named by column and indices"),
        ({"column": "colour"}, "'colour' is no column of the training set, which has"),
        ({"column": "score"}, "must hold true and false"),
        ({"indices": ["nowhere.npy"]}, "no list of row numbers .'nowhere.npy' is no file"),
        ({"indices": ["6"]}, "value 1: 6 is out of range; rows go from 0 to 5. Rows are counted from 0"),
        ({"indices": ["1", "1"]}, "value 2: row 1 comes more than once"),
        ({"conditions": ["score"]}, "write COLUMN SIGN VALUE"),
        ({"conditions": ["score > high"]}, "cannot be compared with 'high'"),
        ({"conditions": ["sore > 1"]}, "'sore' is no column of the training set, which has"),
        ({"conditions": ["label == horse"]}, "cannot be compared with 'horse'"),
        ({"conditions": ["marked == maybe"]}, "cannot be compared with 'maybe'"),
        ({"conditions": ["score > 2"]}, "has 0 of 6 rows"),
        ({"conditions": ["score > 0"]}, "has 6 of 6 rows"),
    ],
)
def test_what_cannot_be_used_is_said_by_name(table, given, words):
    with pytest.raises(ValueError, match=words):
        forget_rows(table, **given)


def test_long_ids_empty_cells_and_dates():
    """Ids beyond 2**53 are not told apart as floats; an empty cell fulfils nothing."""
    import datetime

    ids = [1234567890123456789, 1234567890123456790, 9007199254740993, 9007199254740992]
    days = [datetime.datetime(2024, 1, day) for day in (1, 2, 3)] + [None]
    table = datasets.Dataset.from_dict(
        {"user": ids, "score": [1.0, None, 5.0, None], "id": [3, None, 4, 5], "day": days}
    )
    for condition, expected in (("user == 1234567890123456789", [0]), ("user in 9007199254740993", [2]),
                                ("score > 3", [2]), ("score != 5", [0]), ("id == 3", [0]), ("id in 4,5", [2, 3]),
                                ("day >= 2024-01-02", [1, 2])):  # fmt: skip
        assert forget_rows(table, conditions=[condition]).tolist() == expected, condition
    with pytest.raises(ValueError, match="cannot be compared with 'soon'"):
        forget_rows(table, conditions=["day > soon"])
    with pytest.raises(ValueError, match="must hold true and false .* row 1 is empty"):
        forget_rows(table, column="score")


@pytest.mark.parametrize(
    ("content", "words"),
    [([1.0, 2.9], "entry 1: 2.9 is no row number"), ([True, False, True], "a mask of 3 true and false for 6 rows"),
     ([[1], [2]], "of shape")],
)  # fmt: skip
def test_files_of_something_else_than_row_numbers(table, tmp_path, content, words):
    np.save(tmp_path / "rows.npy", np.array(content))
    with pytest.raises(ValueError, match=words):
        forget_rows(table, indices=[str(tmp_path / "rows.npy")])
    (tmp_path / "rows.npz").write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(ValueError, match="no list of row numbers .*zip"):
        forget_rows(table, indices=[str(tmp_path / "rows.npz")])


def test_pictures_are_not_decoded_to_choose_rows():
    broken = datasets.Dataset.from_dict(
        {"image": [{"bytes": b"no picture", "path": None}] * 3, "keep": [False, True, True]},
        datasets.Features({"image": datasets.Image(), "keep": datasets.Value("bool")}),
    )
    assert forget_rows(broken, column="keep").tolist() == [1, 2]


def test_what_is_on_the_hub_and_what_is_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me").mkdir()
    (tmp_path / "me" / "local").mkdir()
    assert is_hub_id("me/digits:train") == is_hub_id("me/digits") == "me/digits"
    assert is_hub_id("me/local") is None and is_hub_id(str(tmp_path / "x.parquet")) is None
    with pytest.raises(ValueError, match="No data set could be loaded from 'me/nothing'"):
        read_table("me/nothing")
