"""Pictures with labels: read from a parquet folder or the Hub, decoded once, kept as one float tensor.

A sample is {"pixel_values": (C, H, W), "labels": int}.
"""

import os

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset


class Images(Dataset):
    """pixels: (N, C, H, W), normalised. labels: (N,). augment: random crop (pad 4) and flip, from torch's generator."""

    def __init__(self, pixels: Tensor, labels: Tensor, augment: bool = False):
        self.pixels, self.labels, self.augment = pixels, labels, augment

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


def read_images(data: str) -> tuple[Images, Images, np.ndarray]:
    """(training, test images, original rows) of a folder or a Hub id with the splits train and test.

    Both are normalised by the training images' mean and deviation. Original rows: of the training images in the data
    set from which they were drawn (column orig_index), else 0, 1, ...
    """
    import datasets

    folder = os.path.isdir(data)
    files = {split: sorted(_parquet(data, split)) for split in ("train", "test")} if folder else None
    try:
        both = datasets.load_dataset("parquet", data_files=files) if folder else datasets.load_dataset(data)
    except Exception as error:
        raise ValueError(
            f"data={data!r} is neither a folder with train*.parquet and test*.parquet nor a data set on the Hub: "
            f"{(str(error) or type(error).__name__).splitlines()[0]}"
        ) from error
    column, label = image_and_label(both["train"])
    stacks = [
        np.stack([np.asarray(image.convert("RGB")) for image in both[split][column]]) for split in ("train", "test")
    ]
    pixels = [torch.from_numpy(stack).permute(0, 3, 1, 2).float() / 255 for stack in stacks]
    mean, std = pixels[0].mean((0, 2, 3), keepdim=True), pixels[0].std((0, 2, 3), keepdim=True)
    labels = [torch.tensor(both[split][label]) for split in ("train", "test")]
    train, test = (Images((p - mean) / std, y) for p, y in zip(pixels, labels, strict=True))
    numbered = "orig_index" in both["train"].column_names
    return train, test, np.asarray(both["train"]["orig_index"]) if numbered else np.arange(len(train))


def _parquet(folder: str, split: str) -> list[str]:
    found = [os.path.join(folder, f) for f in os.listdir(folder) if f.startswith(split) and f.endswith(".parquet")]
    if not found:
        raise ValueError(f"data={folder!r} has no {split}*.parquet.")
    return found


def image_and_label(table) -> tuple[str, str]:
    """Names of the image column and of the (finest) label column."""
    images = [name for name, feature in table.features.items() if type(feature).__name__ == "Image"]
    labels = [name for name in ("label", "labels", "fine_label") if name in table.column_names]
    if not images or not labels:
        raise ValueError(f"Columns {table.column_names}: need an image column, and label, labels or fine_label.")
    return images[0], labels[0]
