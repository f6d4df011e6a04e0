"""Forget sets by memorization: the samples that a model has to know by heart, those in between, and those it need not.

Zhao et al., NeurIPS 2024 (RUM) and Tang & Khanna: high = the k largest scores, low = the k smallest, mid = the k
nearest to the middle, which is 0.5 for a memorization score.
"""

import os

import numpy as np


def forget_sets_by_score(
    scores: np.ndarray, k: int, *, middle: float | str = 0.5, seed: int = 0
) -> dict[str, np.ndarray]:
    """Return {"high", "mid", "low"}: k row numbers each, rising. Of equal scores the seed draws.

    scores: (N,), e.g. memorization; nan rows (no score) are never chosen. middle: a number, or "median" for scores
    without a natural middle (C-scores, losses, counts). The three sets overlap if 3 k > N.

    Raises ValueError for other shapes, fewer than k scores, and a middle outside the range of the scores.
    """
    scores = np.asarray(scores, float)
    if scores.ndim != 1:
        raise ValueError(f"scores has shape {scores.shape}: need one score a row, (N,).")
    rows = np.flatnonzero(~np.isnan(scores))
    if isinstance(k, bool) or k != int(k) or not 1 <= k <= len(rows):
        raise ValueError(f"k={k!r}: must be an integer from 1 to {len(rows)}, the number of rows with a score.")
    if middle == "median":
        middle = float(np.median(scores[rows]))
    if isinstance(middle, str) or not scores[rows].min() <= middle <= scores[rows].max():
        raise ValueError(
            f"middle={middle!r} lies outside the scores, [{scores[rows].min():.4g}, {scores[rows].max():.4g}]: pass "
            'middle="median" for scores that are no probabilities.'
        )
    rows = np.random.default_rng([seed, 14]).permutation(rows)
    found = {}
    for name, keys in (("high", -scores[rows]), ("mid", np.abs(scores[rows] - middle)), ("low", scores[rows])):
        found[name] = np.sort(rows[np.argsort(keys, kind="stable")[:k]])
    return found


def load_scores(path: str, key: str | None = None) -> np.ndarray:
    """Scores (N,) float64 from an .npy file, an array `key` of an .npz file, or a column `key` of a .parquet or .csv
    file.

    key: may be left out where there is one array or column only. Raises ValueError for a missing file, key or column,
    and values that are not one number a row.
    """
    if not os.path.isfile(path):
        raise ValueError(f"path={path!r} is no file.")
    ending = os.path.splitext(path)[1]
    if ending == ".npy":
        values = np.load(path)
    elif ending == ".npz":
        with np.load(path) as arrays:
            values = arrays[_key(key, list(arrays.keys()), path)]
    elif ending in (".parquet", ".csv"):
        import pyarrow.csv
        import pyarrow.parquet

        read = pyarrow.parquet.read_table if ending == ".parquet" else pyarrow.csv.read_csv
        table = read(path)
        values = table.column(_key(key, table.column_names, path)).to_numpy()
    else:
        raise ValueError(f"path={path!r}: scores are read from .npy, .npz, .parquet and .csv files.")
    if values.ndim != 1 or values.dtype.kind not in "fiub":
        raise ValueError(
            f"path={path!r}, key={key!r} holds {values.dtype} of shape {values.shape}: need numbers, (N,)."
        )
    return values.astype(np.float64)


def _key(key: str | None, names: list[str], path: str) -> str:
    if key is None and len(names) == 1:
        return names[0]
    if key not in names:
        raise ValueError(f"key={key!r}: {path!r} holds {names[:20]}; name one of them.")
    return key
