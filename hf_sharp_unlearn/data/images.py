"""Images that are decoded once: kept in memory as 8-bit tensors, or in a cache on disk, and augmented on their device.

A picture is prepared by the model's own image processor, once; what is kept are the 256 levels before normalisation,
a quarter of the memory of floats. Batches are gathered, augmented and normalised on the device where the images lie,
so a loader has nothing left to do. What an augmentation draws is a hash of the sample's place in the run, computed on
the device: the same for any batch size, number of processes, device, and after a resume.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..runtime import isolated_rng, progress_bar, seed_host
from .caches import mapped
from .pictures import Pictures, undecoded

Augmentation = Callable[..., Tensor]
_MASK = {shift: (1 << (64 - shift)) - 1 for shift in (27, 30, 31)}


@dataclass(frozen=True)
class CropFlip:
    """Pad with black, crop at random to the old size, flip left to right with probability 1/2: the usual augmentation
    of small images (He et al., CVPR 2016, section 4.2). padding: pixels on each side, >= 0."""

    padding: int = 4
    flip: bool = True

    def __post_init__(self):
        if isinstance(self.padding, bool) or not isinstance(self.padding, int) or self.padding < 0:
            raise ValueError(f"CropFlip(padding={self.padding!r}): must be a whole number of pixels >= 0.")

    def batch(self, pixels: Tensor, seeds: Tensor) -> Tensor:
        """pixels: (n, channels, height, width), any dtype. seeds: (n,) int64. Same shape; one draw a sample."""
        drawn = _hash(seeds.to(pixels.device))
        span = 2 * self.padding + 1
        down, right = (drawn & 0xFFFFF) % span, ((drawn >> 20) & 0xFFFFF) % span
        height, width = pixels.shape[-2:]
        rows = torch.arange(height, device=pixels.device) + down[:, None]
        columns = torch.arange(width, device=pixels.device) + right[:, None]
        if self.flip:
            columns = torch.where(((drawn >> 40) & 1).bool()[:, None], columns.flip(1), columns)
        padded = torch.nn.functional.pad(pixels, (self.padding,) * 4)
        samples = torch.arange(len(pixels), device=pixels.device)[:, None, None, None]
        channels = torch.arange(pixels.shape[1], device=pixels.device)[None, :, None, None]
        return padded[samples, channels, rows[:, None, :, None], columns[:, None, None, :]]


def _hash(seeds: Tensor) -> Tensor:
    """splitmix64 (Steele et al., OOPSLA 2014) of int64 values; products wrap around alike on all devices."""
    value = seeds + -7046029254386353131  # 0x9E3779B97F4A7C15
    value = (value ^ ((value >> 30) & _MASK[30])) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    value = (value ^ ((value >> 27) & _MASK[27])) * -7723592293110705685  # 0x94D049BB133111EB
    return value ^ ((value >> 31) & _MASK[31])


class ImagesInMemory(Dataset):
    """Small images as one tensor of 8-bit levels; samples are {"pixel_values": normalised floats, "labels": class}.

    pixels: (n, channels, height, width) uint8. labels: (n,) whole numbers. mean, std: of a channel, for levels scaled
        to [0, 1]. augmentation: a `CropFlip`, or any callable on one 8-bit image (channels, height, width), e.g. a
        torchvision v2 transform; the former is computed for a whole batch on their device. None for none.

    It is kept on one device; on a GPU, load with `dataloader_num_workers=0`. `UnlearningTrainer` evaluates without the
    augmentation. Raises ValueError for shapes and types that do not fit.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        augmentation: Augmentation | None = None,
    ):
        if pixels.dtype != torch.uint8 or pixels.ndim != 4:
            raise ValueError(f"pixels are {pixels.dtype} of shape {tuple(pixels.shape)}: must be uint8, (n, c, h, w).")
        labels = torch.as_tensor(labels)
        if labels.shape != (len(pixels),) or labels.is_floating_point():
            raise ValueError(f"labels are {labels.dtype} of shape {tuple(labels.shape)}: give {len(pixels)} classes.")
        if augmentation is not None and not callable(augmentation) and not hasattr(augmentation, "batch"):
            raise ValueError(f"augmentation={augmentation!r}: must be a CropFlip, or a callable on one image.")
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, pixels.shape[1]):
                raise ValueError(
                    f"{name}={list(values)}: give one value, or one for each of {pixels.shape[1]} channels."
                )
        self.pixels, self.labels, self.augmentation = pixels, labels.to(pixels.device, torch.long), augmentation
        self.mean, self.std = (torch.tensor(values, device=pixels.device).view(-1, 1, 1) for values in (mean, std))
        self.rows = torch.arange(len(pixels))

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        processor: Any,
        image: str = "image",
        label: str = "label",
        device: torch.device | str = "cpu",
        augmentation: Augmentation | None = None,
        batch_size: int = 256,
    ) -> "ImagesInMemory":
        """Decode and prepare each picture of a `datasets.Dataset` once.

        processor: the model's (`AutoImageProcessor`). image, label: names of the columns. Raises ValueError for a
        processor whose images do not lie on 256 levels before normalisation.
        """
        for name, column in (("image", image), ("label", label)):
            if column not in dataset.column_names:
                raise ValueError(f"{name}={column!r} is no column of the data set, which has {dataset.column_names}.")
        numbers = np.asarray(dataset.with_format(None)[label][:])
        if numbers.dtype.kind not in "iu":
            raise ValueError(f"label={label!r}: holds {numbers[:3].tolist()}, must hold numbers of classes.")
        level, parts, dataset = Levels(processor, image, label), [], undecoded(dataset, image)
        for low in progress_bar(
            range(0, len(dataset), batch_size), desc="images", leave=False, disable=len(dataset) < 5000
        ):
            made = level(dataset[low : low + batch_size], range(low, min(low + batch_size, len(dataset))))
            parts.append(torch.from_numpy(made["pixel_values"]))
        return cls(torch.cat(parts).to(device), torch.as_tensor(numbers), level.mean, level.std, augmentation)

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, rows: Sequence[int]) -> "ImagesInMemory":
        """Some rows; the images themselves are shared."""
        other = self._copy(self.augmentation)
        other.rows = self.rows[torch.as_tensor(np.asarray(rows))]
        return other

    def with_augmentation(self, augmentation: Augmentation | None) -> "ImagesInMemory":
        """The same images with another augmentation; they are shared."""
        return self._copy(augmentation)

    def for_evaluation(self) -> "ImagesInMemory":
        return self.with_augmentation(None)

    def _copy(self, augmentation: Augmentation | None) -> "ImagesInMemory":
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, augmentation=augmentation)
        other.__dict__.pop("unlearning_rows", None)
        return other

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One sample; an augmentation draws its seed from torch's global generator."""
        seed = int(torch.randint(2**62, ())) if self.augmentation is not None else 0
        return self.fetch([index], [seed])[0]

    def fetch(self, indices: Sequence[int], seeds: Sequence[int]) -> list[dict[str, Tensor]]:
        """Samples by index, each augmented from its own seed, in a few operations for all of them together."""
        rows = self.rows[torch.as_tensor(indices)].to(self.device)
        pixels, augment = self.pixels[rows], self.augmentation
        if augment is not None and hasattr(augment, "batch"):
            pixels = augment.batch(pixels, torch.tensor(seeds, dtype=torch.long))
        elif augment is not None:
            pixels = torch.stack([_drawn(augment, image, seed) for image, seed in zip(pixels, seeds, strict=True)])
        values = pixels.float().div_(255).sub_(self.mean).div_(self.std)
        return [{"pixel_values": v, "labels": c} for v, c in zip(values, self.labels[rows], strict=True)]


def _drawn(augment: Augmentation, image: Tensor, seed: int) -> Tensor:
    with isolated_rng():
        seed_host(seed)
        return augment(image)


@dataclass(frozen=True)
class Levels:
    """Prepares rows with pictures by a model's image processor, up to normalisation: 8-bit levels. (A class, so that
    other processes can have it, and `datasets` can tell by its parts whether a cache is of today.)"""

    processor: Any
    image: str
    label: str
    pictures: Pictures = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "pictures", Pictures(picture_mode(self.processor), self.image))

    @property
    def mean(self) -> list[float]:
        return [float(value) for value in self._statistic("mean", 0.0)]

    @property
    def std(self) -> list[float]:
        return [float(value) for value in self._statistic("std", 1.0)]

    def _statistic(self, name: str, neutral: float) -> Sequence[float]:
        timm = getattr(self.processor, "data_config", None)  # of a timm wrapper
        if timm is not None:
            return timm[name]
        normalises = getattr(self.processor, "do_normalize", True)
        return getattr(self.processor, f"image_{name}", None) if normalises else [neutral]

    def __call__(self, rows: dict[str, list], numbers: Sequence[int] | None = None) -> dict[str, Any]:
        """numbers: of the rows in their table, for errors."""
        values = self.processor(self.pictures(rows[self.image], numbers), return_tensors="pt")["pixel_values"]
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        scale = 255 if getattr(self.processor, "do_rescale", True) else 1
        levels = (values * std + mean) * scale
        whole = levels.round().clamp(0, 255)
        if (levels - whole).abs().max() > 0.02:
            raise ValueError(
                f"{type(self.processor).__name__} makes values between the 256 levels of its pictures: they cannot be "
                "kept as 8-bit images. Let it prepare them anew each time (images='process')."
            )
        return {"pixel_values": whole.to(torch.uint8).numpy(), "labels": rows[self.label]}


def picture_mode(processor: Any) -> str:
    """How PIL must convert pictures for this processor: "L" for one channel, "RGB" otherwise."""
    size = (getattr(processor, "data_config", None) or {}).get("input_size")
    return "L" if size is not None and size[0] == 1 else "RGB"


@dataclass(frozen=True)
class Packed:
    """What `Levels` makes, each image as bytes: the form in which the cache on disk reads fastest."""

    levels: Levels

    def __call__(self, rows: dict[str, list], numbers: Sequence[int]) -> dict[str, Any]:
        made = self.levels(rows, numbers)
        return {"pixel_values": [image.tobytes() for image in made["pixel_values"]], "labels": made["labels"]}


@dataclass(frozen=True)
class Unpacked:
    """Rows of the cache on disk, augmented (see `ImagesInMemory`) and normalised."""

    shape: tuple[int, int, int]
    mean: Sequence[float]
    std: Sequence[float]
    augmentation: Augmentation | None = None

    label_column = "labels"  # not annotated: no field. It goes through unchanged

    def __call__(self, rows: dict[str, list]) -> dict[str, Any]:
        images = [np.frombuffer(image, dtype=np.uint8).reshape(self.shape) for image in rows["pixel_values"]]
        pixels, labels = torch.from_numpy(np.stack(images)), torch.zeros(len(images), dtype=torch.long)
        data = ImagesInMemory(pixels, labels, self.mean, self.std, self.augmentation)
        return {**rows, "pixel_values": [data[i]["pixel_values"] for i in range(len(data))]}

    def for_evaluation(self) -> "Unpacked":
        return dataclasses.replace(self, augmentation=None)


def cached_images(dataset: Any, processor: Any, image: str, label: str, augmentation: Any = None) -> Any:
    """A `datasets.Dataset` whose pictures are decoded and prepared once, into the cache of `datasets` on disk: for
    images that do not fit into memory. Raises ValueError as `ImagesInMemory.from_dataset`."""
    import datasets

    level, dataset = Levels(processor, image, label), undecoded(dataset, image)
    shape = level(dataset[:1], [0])["pixel_values"].shape[1:]
    features = datasets.Features({"pixel_values": datasets.Value("binary"), "labels": datasets.Value("int64")})
    kept = mapped(
        dataset, Packed(level), with_indices=True, batched=True, batch_size=256, remove_columns=dataset.column_names,
        features=features, desc="images",
    )  # fmt: skip
    return kept.with_transform(Unpacked(tuple(shape), level.mean, level.std, augmentation))
