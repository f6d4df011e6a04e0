"""Forget sets by score, and the files that scores are read from."""

import numpy as np
import pandas
import pytest

from hf_sharp_unlearn.analysis import forget_sets_by_score, load_scores


def test_forget_sets_by_hand():
    sets = forget_sets_by_score([0.9, 0.1, 0.52, 0.45, 0.0, 1.0], 2)
    assert {name: found.tolist() for name, found in sets.items()} == {"high": [0, 5], "mid": [2, 3], "low": [1, 4]}
    counts = forget_sets_by_score(np.array([9.0, 7.0, 5.0, 3.0, 1.0]), 1, middle="median")
    assert counts["mid"].tolist() == [2]
    sparse = forget_sets_by_score([np.nan, 0.9, np.nan, 0.1], 1)
    assert sparse["high"].tolist() == [1] and sparse["low"].tolist() == [3]


def test_ties_are_broken_by_the_seed_and_by_nothing_else():
    scores = np.repeat([0.0, 1.0], 50)
    one, same, other = (forget_sets_by_score(scores, 10, seed=seed)["high"] for seed in (0, 0, 1))
    assert one.tolist() == same.tolist() != other.tolist() and (one >= 50).all()
    drawn = np.concatenate([forget_sets_by_score(scores, 10, seed=seed)["high"] for seed in range(60)])
    assert len(np.unique(drawn)) == 50, "every tied row has its chance"


@pytest.mark.parametrize(
    ("scores", "k", "options", "words"),
    [
        ([[0.1, 0.2]], 1, {}, "shape"),
        ([0.1, 0.2], 3, {}, "k=3: must be an integer from 1 to 2"),
        ([0.1, np.nan], 2, {}, "from 1 to 1"),
        ([0.1, 0.2], 0, {}, "k=0"),
        ([0.1, 0.2], 1.5, {}, "k=1.5"),
        ([3.0, 4.0], 1, {}, "middle=0.5 lies outside the scores"),
        ([0.1, 0.9], 1, {"middle": "mean"}, "middle='mean'"),
    ],
)
def test_forget_sets_refuse(scores, k, options, words):
    with pytest.raises(ValueError, match=words):
        forget_sets_by_score(scores, k, **options)


def test_scores_are_read_from_any_usual_file(tmp_path):
    scores = np.array([0.5, 0.25, np.nan], np.float32)
    np.save(tmp_path / "a.npy", scores)
    np.savez(tmp_path / "b.npz", mem=scores, other=scores)
    table = pandas.DataFrame({"id": [1, 2, 3], "mem": scores})
    table.to_parquet(tmp_path / "c.parquet")
    table.to_csv(tmp_path / "d.csv", index=False)
    for name, key in (("a.npy", None), ("b.npz", "mem"), ("c.parquet", "mem"), ("d.csv", "mem")):
        found = load_scores(str(tmp_path / name), key)
        assert found.dtype == np.float64 and np.array_equal(found, scores.astype(np.float64), equal_nan=True), name
    for name, key, words in (
        ("b.npz", None, "holds .'mem', 'other'.; name one"),
        ("c.parquet", "x", "key='x'"),
        ("e.npy", None, "is no file"),
    ):
        with pytest.raises(ValueError, match=words):
            load_scores(str(tmp_path / name), key)
    np.save(tmp_path / "two.npy", np.zeros((2, 2)))
    with pytest.raises(ValueError, match="need numbers"):
        load_scores(str(tmp_path / "two.npy"))
    (tmp_path / "f.txt").write_text("1")
    with pytest.raises(ValueError, match="read from .npy, .npz, .parquet and .csv"):
        load_scores(str(tmp_path / "f.txt"))
