"""What is wrong with a file of samples is said in one line: file, line, column, cause."""

import gc

import pytest
from optional_packages import datasets

from hf_sharp_unlearn.data.tables import forget_rows, read_table

LINE = '{"words": "a", "label": 1}\n'


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "words,label\na,1\nb,0\n\nc,d,1\n", "line 5 has 3 fields, the header has 2.*Expected 2 fields"),
        ("a.csv", "words,label\n7,a,1\n8,b,0\n", "line 2 has 3 fields, the header has 2"),
        ("a.csv", "words,label,words\na,1,b\n", "line 1 names column 'words' twice"),
        ("a.csv", 'words,label\n"a\nb",1\n"c,0\nd,1\n', "a quote is opened and not closed, from line 4"),
        ("a.csv", "words,label\na,1\nna\xefve,0\n".encode("latin-1"), "line 3 is not utf-8, byte 0xef at position 2"),
        ("a.csv", "words,label\n" + "a,1\n" * 11000 + "a,two\n", "line 11002, column 'label' holds 'two'"),
        ("a.csv", "words,label\n", "it has a header and no row"),
        ("a.csv", "", "the file is empty"),
        ("a.jsonl", LINE * 2 + '{"words": "b", "label"}\n', "line 3 is no JSON: Expecting ':' delimiter at column 23"),
        ("a.jsonl", LINE * 2 + '{"words": "\xe9"}\n', "line 3 is not utf-8, byte 0xe9"),
        ("a.json", '[{"words": "a", "label": 1},\n {"words": ', "it is no JSON: .*line 2"),
        ("a.json", "7", "it holds no list of objects"),
        ("a.parquet", b"PAR1 and nothing", "Parquet"),
        ("a.txt", "a", "files must end in one of"),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # readers leave the file open
def test_a_file_that_cannot_be_read(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("latin-1"))
    with pytest.raises(ValueError, match=words) as refused:
        read_table(str(path))
    assert str(refused.value).startswith(f"No data set could be loaded from {str(path)!r}: ")
    del refused
    gc.collect()


def test_readable_files_stay_readable(tmp_path):
    for name, content in {
        "a.csv": '\ufeffwords,label\r\n"a, ""b""\nc",1\r\nd,0\r\n',
        "b.csv": "words,label\na,1\nb\n",
        "c.jsonl": "\ufeff" + LINE * 2,
        "d.json": f"[{LINE}, {LINE}]",
    }.items():
        path = tmp_path / name
        path.write_bytes(content.encode())
        assert len(read_table(str(path))) == 2, name


def test_saved_sets_that_are_cut_or_empty(tmp_path):
    whole = datasets.Dataset.from_dict({"words": ["a"] * 500})
    whole.save_to_disk(tmp_path / "cut")
    file = tmp_path / "cut" / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:900])
    whole.select([]).save_to_disk(tmp_path / "none")
    with pytest.raises(ValueError, match="cut': .*(read|bytes)"):
        read_table(str(tmp_path / "cut"))
    with pytest.raises(ValueError, match="none': it has no row"):
        read_table(str(tmp_path / "none"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_fault_in_a_folder_of_files_names_the_file(tmp_path):
    (tmp_path / "one.csv").write_text("words,label\na,1\n")
    (tmp_path / "two.csv").write_text("words,label\na,1\nb,c,0\n")
    with pytest.raises(ValueError, match="two.csv: line 3 has 3 fields, the header has 2"):
        read_table(str(tmp_path))
    (tmp_path / "two.csv").write_text("words,label\na,c,1\n")
    with pytest.raises(ValueError, match="two.csv: line 2 has 3 fields, the header has 2"):
        read_table(str(tmp_path))
    gc.collect()


@pytest.mark.skipif(not hasattr(datasets, "Json"), reason="this version of datasets refuses such a file")
def test_a_column_of_more_than_one_kind_is_compared_as_its_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"n": 4}\n{"n": "40"}\n{"n": "n/k"}\n{"n": null}\n{"n": true}\n')
    table = read_table(str(tmp_path / "a.jsonl"))
    assert forget_rows(table, conditions=["n == 40"]).tolist() == [1]
    with pytest.raises(ValueError, match="column 'n', row 2 holds 'n/k'"):
        forget_rows(table, conditions=["n > 5"])
