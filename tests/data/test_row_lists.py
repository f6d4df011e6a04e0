"""Lists of row numbers in the forms that people have; tables, masks and odd numbers are refused by file and line."""

import json

import numpy as np
import pytest
from optional_packages import datasets

from hf_sharp_unlearn.data.row_lists import row_numbers

TOTAL = 8


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "6\n2\n"),
        ("a.txt", "\ufeff6\r\n2\r\n\r\n"),
        ("a.txt", "6\n2\n".encode("utf-16")),
        ("a.txt", "6, 2"),
        ("a.txt", "6 2\n"),
        ("a.txt", "6.000000000000000000e+00\n2.000000000000000000e+00\n"),
        ("rows", "6,\n2,\n"),
        ("a.csv", "6\n2\n"),
        ("a.csv", "\ufeffrow\r\n6\r\n2\r\n"),
        ("a.csv", '"row"\n"6"\n"2"\n'),
        ("a.csv", ",index\n0,6\n1,2\n"),
        ("a.csv", "label;row_number\n1;6\n3;2\n"),
        ("a.tsv", "idx\tname\n6\ta\n2\tb\n"),
        ("a.json", "[6, 2]"),
        ("a.json", '{"indices": [6, 2], "seed": 3}'),
        ("a.json", '[{"row": 6, "label": 0}, {"row": 2, "label": 1}]'),
        ("a.jsonl", "6\n2\n"),
        ("a.jsonl", '{"idx": 6, "label": 0}\n\n{"idx": 2, "label": 1}\n'),
    ],
)
def test_lists_that_people_have(tmp_path, name, content):
    assert row_numbers([written(tmp_path, name, content)], TOTAL).tolist() == [2, 6]


def test_lists_that_programs_write(tmp_path):
    np.save(tmp_path / "whole.npy", np.array([6, 2], dtype=np.uint8))
    np.save(tmp_path / "float.npy", np.array([6.0, 2.0]))
    np.save(tmp_path / "mask.npy", np.isin(np.arange(TOTAL), [2, 6]))
    np.savez(tmp_path / "one.npz", rows=np.array([6, 2]))
    np.savetxt(tmp_path / "saved.txt", np.array([6, 2]))
    datasets.Dataset.from_dict({"anything": [6, 2]}).to_parquet(tmp_path / "one.parquet")
    datasets.Dataset.from_dict({"label": [0, 1], "id": [7, 7], "Row": [6, 2]}).to_parquet(tmp_path / "name.parquet")
    (tmp_path / "mask.json").write_text(json.dumps([row in (2, 6) for row in range(TOTAL)]))
    for path in sorted(tmp_path.iterdir()):
        assert row_numbers([str(path)], TOTAL).tolist() == [2, 6], path.name
    assert row_numbers(["6", "2"], TOTAL).tolist() == row_numbers(["6,2"], TOTAL).tolist() == [2, 6]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "", "holds no row number"),
        ("a.txt", "# rows\n3\n", "line 1: '#' is no row number"),
        ("a.txt", "3\n\n4.5\n", "line 3: '4.5' is no row number"),
        ("a.txt", "3\n-1\n", "line 2: -1 is out of range; rows go from 0 to 7"),
        ("a.txt", "1\n8\n", "line 2: 8 is out of range.*counted from 0"),
        ("a.txt", "5\n3\n5\n", "line 3: row 5 comes more than once, first as line 1"),
        ("a.txt", "0 5\n1 3\n", "line 1: 2 numbers in one of 2 lines may be a table"),
        ("a.txt", "9" * 400, "is no row number|out of range"),
        ("a.txt", "nan\n", "line 1: 'nan' is no row number"),
        ("a.csv", ",0\n0,5\n1,2\n", "columns .*' .an index that pandas wrote.*, '0'.*Name one column row"),
        ("a.csv", ",label\n5,0\n2,1\n", "a table with the columns"),
        ("a.csv", "row,index\n5,0\n2,1\n", "a table with the columns"),
        ("a.csv", "0\n5\n2\n", "line 1: 0 is a row number, or the name that pandas gives"),
        ("a.csv", "1O\n5\n", "line 1: '1O' is no row number, and no name of a column"),
        ("a.csv", "# rows\n5\n", "line 1: '# rows' is no row number"),
        ("a.csv", "NaN\n5\n", "line 1: 'NaN' is no row number"),
        ("a.csv", "5,0\n2,1\n", "a table of 2 columns without names"),
        ("a.csv", "row\n5\n2,1\n", "line 3: 2 fields, the first line has 1"),
        ("a.csv", "row\n5\nx\n", "line 3: 'x' is no row number"),
        ("a.json", "[[6, 2]]", "holds lists in a list"),
        ("a.json", '{"forget": [1], "retain": [2]}', "holds the lists .'forget', 'retain'."),
        ("a.json", '{"0": 5, "1": 2}', r"holds the lists \[\]"),
        ("a.json", "[1, null]", "entry 1: None is no row number"),
        ("a.json", "[0, 1, 0, 1, 0, 0, 0, 0]", "8 zeros and ones for 8 rows look like a mask"),
        ("a.json", "[true, false]", "a mask of 2 true and false for 8 rows"),
        ("a.json", "[true, 3]", "entry 0: True is no row number"),
        ("a.json", "[1, 2", "no list of row numbers .*line 1"),
        ("a.jsonl", "1\n{\n", "line 2: '{' is no JSON"),
        ("a.npy", b"\x93NUMPY", "no list of row numbers"),
        ("a.pkl", b"\x80\x04\x95\xff", "no list of row numbers .*utf-8"),
    ],
)
def test_what_is_no_list_is_refused_by_file_and_place(tmp_path, name, content, words):
    path = written(tmp_path, name, content)
    with pytest.raises(ValueError, match=words) as refused:
        row_numbers([path], TOTAL)
    assert str(refused.value).startswith(f"--forget-indices {path}")


def test_tables_of_arrays_are_never_flattened(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[6, 2]]))
    np.save(tmp_path / "b.npy", np.array(3))
    np.savez(tmp_path / "c.npz", forget=np.array([1]), retain=np.array([2]))
    np.save(tmp_path / "d.npy", np.zeros(3, dtype=[("row", int), ("label", int)]))
    datasets.Dataset.from_dict({"row": [1], "index": [2]}).to_parquet(tmp_path / "e.parquet")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ValueError, match="of shape|holds the arrays|a table with the columns"):
            row_numbers([str(path)], TOTAL)


def test_words_and_files_are_not_mixed_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "3").write_text("5\n")
    with pytest.raises(ValueError, match="a row number and a file. Write ./3"):
        row_numbers(["3"], TOTAL)
    assert row_numbers(["./3"], TOTAL).tolist() == [5]
    for given, words in ((["./3", "4"], "one of several files"), (["."], "a folder"), (["x"], "'x' is no file")):
        with pytest.raises(ValueError, match=words):
            row_numbers(given, TOTAL)
