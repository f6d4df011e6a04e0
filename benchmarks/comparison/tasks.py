"""What is unlearned from what: images with scores, from a parquet folder or the Hub, or scikit-learn's digits."""

import os
from dataclasses import dataclass

import numpy as np
import torch

from hf_sharp_unlearn.benchmarks.parts.images import Images, read_images
from hf_sharp_unlearn.demo import digits_with_wrong_labels


@dataclass(frozen=True)
class Task:
    """Training and test images, and a score by training row: low scores are the hardest to learn."""

    train: Images
    test: Images
    classes: int
    scores: np.ndarray
    name: str

    def forget_rows(self, selection: str, share: float, seed: int) -> np.ndarray:
        """Rows to forget: "hard", the lowest scores; "random", drawn with `seed`."""
        count = round(share * len(self.train))
        if selection == "random":
            return np.sort(np.random.default_rng([seed, 6]).permutation(len(self.train))[:count])
        return np.sort(np.argsort(self.scores, kind="stable")[:count])


def load_task(data: str | None, scores: str | None) -> Task:
    """data: a folder or a Hub id with the splits train and test; None: digits with wrong labels.

    scores: .npy file with one score a training row (rows are looked up by the column orig_index where there is one).
    Raises ValueError where data or scores do not fit.
    """
    if data is None:
        return _digits()
    train, test, rows = read_images(data)
    if scores is None:
        raise ValueError(f"scores=None: choosing the hardest samples of {data!r} needs a score for each training row.")
    values = np.load(scores)
    if rows.max() >= len(values):
        raise ValueError(f"scores={scores!r} has {len(values)} rows, the data set names row {rows.max()}.")
    return Task(train, test, int(train.labels.max()) + 1, values[rows], os.path.basename(os.path.normpath(data)))


def _digits() -> Task:
    train, wrong, test = digits_with_wrong_labels(seed=0)
    sets = [
        Images(torch.stack([s["pixel_values"] for s in split]), torch.tensor([s["labels"] for s in split]))
        for split in (train, test)
    ]
    scores = np.ones(len(train))
    scores[wrong] = 0
    return Task(*sets, 10, scores, "digits")
