"""Conditions: numbers, dates or words, never letters; what is not clear is refused with column, row and cell."""

import datetime

import numpy as np
import pytest
from optional_packages import datasets

from hf_sharp_unlearn.data.tables import forget_rows, read_table

UTC = datetime.UTC
HOURS = [datetime.datetime(2024, 5, 6, hour, tzinfo=UTC) for hour in (0, 9, 15)]
DAY = datetime.datetime(2024, 5, 9)


@pytest.fixture(scope="module")
def table():
    columns = {
        "price": ["12.50", "9", "1e2", None],
        "age": ["30", "7", "n/k", "100"],
        "day": ["2024-05-06", "2023-12-31", "", "2024-11-02"],
        "zip": ["01234", "1234", "50000", "x"],
        "city": ["Bonn", "Bonn ", "Ulm", None],
        "user": ["9007199254740993", "9007199254740992", "5", "6"],
        "seen": ["True", "False", "unknown", "True"],
        "at": [*HOURS, None],
        "naive": [datetime.datetime(2024, 5, 6, 12), datetime.datetime(2024, 5, 7), None, DAY],
        "loss": [-2.5, float("nan"), 1e-4, 3.0],
        "half > done": [1, 2, 3, 4],
        "log-in": [5, 6, 7, 8],
        "box": [[1], [2], [3], [4]],
    }
    features = {"loss": datasets.Value("float32")}
    made = datasets.Dataset.from_dict(columns)
    return made.cast(datasets.Features({**made.features, **features}))


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("price > 9.5", [0, 2]),
        ("price <= 12.5", [0, 1]),
        ("price == 9", [1]),
        ("age == 7", [1]),
        ("age != 7", [0, 2, 3]),
        ("day < 2024-05-07", [0, 1]),
        ("day >= 2024-05-06", [0, 3]),
        ("zip == '1234'", [1]),
        ("zip in '01234', 50000", [0, 2]),
        ("city == 'Bonn'", [0]),
        ("city != Ulm", [0, 1]),
        ("user == 9007199254740993", [0]),
        ("user > 9007199254740992", [0]),
        ("seen != True", [1, 2]),
        ("at >= 2024-05-06T09:00Z", [1, 2]),
        ("at == 2024-05-06T11:00:00+02:00", [1]),
        ("naive < 2024-05-07", [0]),
        ("naive == 2024-05-07", [1]),
        ("loss < -1", [0]),
        ("loss == 0.0001", [2]),
        ("loss != 3", [0, 2]),
        ("loss > +1E-5", [2, 3]),
        ("half > done > 2", [2, 3]),
        ("log-in in [5, 8]", [0, 3]),
        ("log-in >= 6.5", [2, 3]),
        ("'log-in' == '7'", [2]),
    ],
)
def test_rows_by_the_meaning_of_their_cells(table, condition, rows):
    assert forget_rows(table, conditions=[condition]).tolist() == rows


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("age > 9", "column 'age', row 2 holds 'n/k', which cannot be compared with '9'. Each cell must be a number"),
        ("price > cheap", "row 0 holds '12.50', which cannot be compared with 'cheap'. Words have no order"),
        ("age > 2024-01-01", "row 0 holds '30', .* Each cell must be a date"),
        ("zip == 1234", "row 0 holds '01234', .* quote '1234'"),
        ("zip != 1234.0", "row 0 holds '01234'"),
        ("city == Bonn", "row 1 holds 'Bonn '"),
        ("city != Born", "no row of column 'city' holds 'Born'"),
        ("city in Bonn, NA", "row 3 holds None, which cannot be compared with 'NA'|row 1 holds 'Bonn '"),
        ("city in Ulm, null", "row 3 holds None, which cannot be compared with 'null'"),
        ("city in Ulm, Koln", "no row of 'city' holds 'Koln'"),
        ("city in Ulm,", "an empty value in the list"),
        ("city == 'Ulm", "opens a quote and does not close it"),
        ("city === Ulm", "=== is no sign"),
        ("city = Ulm", "write COLUMN SIGN VALUE"),
        ("seen == true", "row 0 holds 'True'"),
        ("at > 2024-05-06", "row 0 holds .* both with a time zone"),
        ("naive > 2024-05-06T08:00Z", "both with a time zone"),
        ("naive == 2024-05-06", "row 0 holds .* Write a time, 2024-05-06T00:00"),
        ("naive <= 2024-05-06", "row 0 holds"),
        ("naive > yesterday", "holds dates, which cannot be compared with 'yesterday'"),
        ("loss == nan", "holds numbers, which cannot be compared with 'nan'"),
        ("loss == 16777217", "holds float32, which does not tell 16777217"),
        ("loss < 1e99", "holds float32, which does not tell 1e99"),
        ("box == 1", "column 'box' holds List"),
    ],
)
def test_what_is_not_clear_is_refused(table, condition, words):
    with pytest.raises(ValueError, match=words) as refused:
        forget_rows(table, conditions=[condition])
    assert repr(condition) in str(refused.value)


def test_classes_go_by_name_or_number():
    def classes(*names, labels=(0, 1, 2, -1)):
        features = datasets.Features({"label": datasets.ClassLabel(names=list(names))})
        return datasets.Dataset.from_dict({"label": list(labels)}, features)

    def rows(condition, *names):
        return forget_rows(classes(*names), conditions=[condition]).tolist()

    assert rows("label == ten", "one", "ten", "two") == rows("label == 1", "one", "ten", "two") == [1]
    assert rows("label != ten", "one", "ten", "two") == [0, 2], "a row without a class fulfils nothing"
    assert rows("label >= 1", "one", "ten", "two") == [1, 2]
    assert rows("label == 2", "0", "1", "2") == [2]
    assert rows("label == '2'", "1", "10", "2") == [2]
    for condition, words in (("label == 2", "the name of class"), ("label < 2", "named by other numbers")):
        with pytest.raises(ValueError, match=words):
            rows(condition, "2", "10", "1")
    for condition in ("label == 7", "label == owl", "label < ten", "label == -1"):
        with pytest.raises(ValueError, match="holds classes, which cannot be compared with"):
            rows(condition, "one", "ten", "two")


def test_a_column_of_true_and_false_in_words():
    table = datasets.Dataset.from_dict(
        {"a": ["True", "false", "1", "0", " TRUE"], "b": ["yes", "no", "no", "no", "no"],
         "c": [True, None, False, True, True], "d": [1.0, 0.0, 0.5, 1.0, 0.0]}
    )  # fmt: skip
    assert forget_rows(table, column="a").tolist() == [0, 2, 4]
    for column, words in (("b", "row 0 holds 'yes'"), ("c", "row 1 is empty"), ("d", "row 2 holds 0.5")):
        with pytest.raises(ValueError, match=f"--forget-column {column}: must hold true and false .*{words}"):
            forget_rows(table, column=column)
    assert forget_rows(table, conditions=["b == yes"]).tolist() == [0]
    features = datasets.Features({"drop": datasets.ClassLabel(names=["true", "false"])})
    assert forget_rows(datasets.Dataset.from_dict({"drop": [0, 1, 1, 0]}, features), column="drop").tolist() == [0, 3]


def test_nanoseconds_and_decimals_are_not_rounded():
    import pyarrow as pa

    times = pa.array([1_700_000_000_000_000_001, 1_700_000_000_000_000_000, None], pa.timestamp("ns"))
    exact = pa.array(["0.1", "0.10000000000000000001", None]).cast(pa.decimal128(30, 20))
    table = datasets.Dataset(pa.table({"at": times, "exact": exact}))
    assert forget_rows(table, conditions=["at > 2023-11-14T22:13:20"]).tolist() == [0]
    assert forget_rows(table, conditions=["exact == 0.10"]).tolist() == [0]
    assert np.array_equal(forget_rows(table, conditions=["exact > 0.1"]), [1])


def test_numbers_that_a_csv_file_writes_in_more_than_one_way(tmp_path):
    """01234 and 1234, and the versions 1.1 and 1.10, are one number only to the reader."""
    path = tmp_path / "a.csv"
    path.write_text("zip,version,score,part\n01234,1.1,0.50,007\n1234,1.10,0.25,008\n50000,1.2,,009\n")
    table = read_table(str(path))

    def rows(condition):
        return forget_rows(table, conditions=[condition], spec=str(path)).tolist()

    assert rows("zip == 50000") == [2] and rows("zip > 1234") == [2] and rows("part == 008") == [1]
    assert rows("score == 0.5") == [0] and rows("version in 1.2") == [2]
    for condition, words in (
        ("zip == 1234", "row 0 '01234', row 1 '1234'"), ("zip in 50000, 01234", "row 0 '01234', row 1 '1234'"),
        ("version != 1.10", "row 0 '1.1', row 1 '1.10'"), ("part == 7", "row 0 '007'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"holds this number written otherwise .{words}"):
            rows(condition)
