"""Images for the comparison of methods: a parquet folder, a Hub data set, or scikit-learn's digits.

Images are decoded once and kept as one float tensor. A sample is {"pixel_values": (C, H, W), "labels": int}.
"""

import os
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


class Images(Dataset):
    """pixels: (N, C, H, W), normalised. labels: (N,). augment: random crop (pad 4) and flip, from torch's generator."""

    def __init__(self, pixels: Tensor, labels: Tensor, augment: bool = False):
        self.pixels, self.labels, self.augment = pixels, labels, augment
        self.rows = np.arange(len(labels))  # in the data set that the scores are of

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        image = self.pixels[index]
        if self.augment:
            padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
            top, left, flip = (int(torch.randint(high, ())) for high in (9, 9, 2))
            image = padded[:, top : top + image.shape[1], left : left + image.shape[2]]
            image = image.flip(-1) if flip else image
        return {"pixel_values": image, "labels": int(self.labels[index])}

    def select(self, rows: np.ndarray, augment: bool = False) -> "Images":
        return Images(self.pixels[rows], self.labels[rows], augment)


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
    train, test = load_images(data)
    if scores is None:
        raise ValueError(f"scores=None: choosing the hardest samples of {data!r} needs a score for each training row.")
    values = np.load(scores)
    rows = train.rows
    if rows.max() >= len(values):
        raise ValueError(f"scores={scores!r} has {len(values)} rows, the data set names row {rows.max()}.")
    return Task(train, test, int(train.labels.max()) + 1, values[rows], os.path.basename(os.path.normpath(data)))


def load_images(data: str) -> tuple[Images, Images]:
    """(training, test images) of a folder or a Hub id, normalised by the training images' mean and deviation."""
    import datasets

    folder = os.path.isdir(data)
    files = {split: sorted(_parquet(data, split)) for split in ("train", "test")} if folder else None
    both = datasets.load_dataset("parquet", data_files=files) if folder else datasets.load_dataset(data)
    column, label = _columns(both["train"])
    stacks = [
        np.stack([np.asarray(image.convert("RGB")) for image in both[split][column]]) for split in ("train", "test")
    ]
    pixels = [torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255 for stack in stacks]
    mean, std = pixels[0].mean((0, 2, 3), keepdim=True), pixels[0].std((0, 2, 3), keepdim=True)
    labels = [torch.tensor(both[split][label]) for split in ("train", "test")]
    train, test = (Images((p - mean) / std, y) for p, y in zip(pixels, labels, strict=True))
    if "orig_index" in both["train"].column_names:
        train.rows = np.asarray(both["train"]["orig_index"])
    return train, test


def _parquet(folder: str, split: str) -> list[str]:
    found = [os.path.join(folder, f) for f in os.listdir(folder) if f.startswith(split) and f.endswith(".parquet")]
    if not found:
        raise ValueError(f"data={folder!r} has no {split}*.parquet.")
    return found


def _columns(table) -> tuple[str, str]:
    """Names of the image column and of the (finest) label column."""
    images = [name for name, feature in table.features.items() if type(feature).__name__ == "Image"]
    labels = [name for name in ("label", "labels", "fine_label") if name in table.column_names]
    if not images or not labels:
        raise ValueError(f"Columns {table.column_names}: need an image column, and label, labels or fine_label.")
    return images[0], labels[0]


def _digits() -> Task:
    from hf_sharp_unlearn.demo import digits_with_wrong_labels

    train, wrong, test = digits_with_wrong_labels(seed=0)
    sets = [
        Images(torch.stack([s["pixel_values"] for s in split]), torch.tensor([s["labels"] for s in split]))
        for split in (train, test)
    ]
    scores = np.ones(len(train))
    scores[wrong] = 0
    return Task(*sets, 10, scores, "digits")
