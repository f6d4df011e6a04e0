"""The partition: which parameters belong to the forget part.

    saliency   s = | sum over forget samples of grad loss(sample) |     eval mode, fp32, at the starting weights
    mask       m = 1 on the k = round(fraction * N) largest of all N unique trainable elements; 1 <= k <= N - 1 for a
               fraction below 1, k = N for 1
    ties       by parameter order, then by index

The sum is signed and the absolute value comes last, as in SalUn (Fan et al., ICLR 2024, arXiv 2310.12508). Made once,
before the first step, and saved in every checkpoint: it depends on the starting weights, which are gone by then.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..runtime import all_reduce_mean, evaluating, full_precision, written_whole

FILE_NAME = "partition.safetensors"


@dataclass(frozen=True)
class Partition:
    """Boolean masks by parameter name: True marks the forget part."""

    masks: dict[str, Tensor]

    file_name: ClassVar[str] = FILE_NAME

    @classmethod
    def from_saliency(cls, saliency: Mapping[str, Tensor], fraction: float) -> "Partition":
        """Mask the `fraction` largest values over all tensors together.

        saliency: parameter name -> finite values >= 0, float32, any shape. Raises FloatingPointError for others.
        """
        total = sum(value.numel() for value in saliency.values())
        if total < 2:
            raise ValueError(f"The model has {total} trainable parameter(s): a partition needs at least 2.")
        for name, value in saliency.items():
            if not torch.isfinite(value).all():
                raise FloatingPointError(f"Non-finite gradient of {name} on the forget set: check data and loss.")
        keep = _size_of_part(fraction, total)
        threshold, ties = _kth_largest({name: _ordered_bits(value) for name, value in saliency.items()}, keep)
        masks = {}
        for name, value in saliency.items():
            bits = _ordered_bits(value)
            mask = bits > threshold
            if ties:
                tied = (bits == threshold).reshape(-1).nonzero().reshape(-1)[:ties]
                mask.view(-1)[tied] = True
                ties -= len(tied)
            masks[name] = mask
        return cls(masks)

    def check(self, module: nn.Module, fraction: float, source: str) -> None:
        """Raise ValueError unless there is one mask of the right shape for each trainable parameter, of the right
        size in all."""
        shapes = {name: tuple(w.shape) for name, w in module.named_parameters() if w.requires_grad}
        mine = {name: tuple(mask.shape) for name, mask in self.masks.items()}
        if shapes == mine:
            inside, total = self.sizes()
            if inside != _size_of_part(fraction, total):
                raise ValueError(
                    f"{source} has {inside / total:.4%} of the parameters in the forget part, the method asks for "
                    f"fraction={fraction}. Resume with the fraction that the checkpoint was made with."
                )
            return
        wrong = sorted(name for name in shapes.keys() | mine.keys() if shapes.get(name) != mine.get(name))
        raise ValueError(
            f"{source} does not match the model: {len(wrong)} parameter(s) differ, e.g. {wrong[0]!r} (model: "
            f"{shapes.get(wrong[0])}, partition: {mine.get(wrong[0])}). Resume with the model, and the trainable "
            "parameters, that the checkpoint was made with."
        )

    def to(self, module: nn.Module) -> "Partition":
        """The same masks, each on its parameter's device."""
        devices = {name: weight.device for name, weight in module.named_parameters()}
        return Partition({name: mask.to(devices[name]) for name, mask in self.masks.items()})

    def counts(self) -> dict[str, tuple[int, int]]:
        """Parameter name -> (elements in the forget part, elements)."""
        return {name: (int(mask.sum()), mask.numel()) for name, mask in self.masks.items()}

    def sizes(self) -> tuple[int, int]:
        """(elements in the forget part, elements)."""
        inside, total = zip(*self.counts().values(), strict=True)
        return sum(inside), sum(total)

    def summary(self) -> str:
        """A table: for each layer, how many of its parameters are in the forget part."""
        layers: dict[str, list[int]] = {}
        for name, (inside, size) in self.counts().items():
            layer = layers.setdefault(name.rpartition(".")[0] or name, [0, 0])
            layer[0] += inside
            layer[1] += size
        width = max(len("all layers"), *map(len, layers))
        rows = [("all layers", *self.sizes()), *((name, *layer) for name, layer in layers.items())]
        lines = [f"{'layer':<{width}}  {'forget part':>12}  {'parameters':>12}  {'share':>7}"]
        lines += [f"{name:<{width}}  {a:>12,}  {b:>12,}  {a / max(b, 1):>7.2%}" for name, a, b in rows]
        return "\n".join(lines)

    def save(self, directory: str) -> None:
        """Write the masks, one bit per element. They are made from forget data: treat the file as such."""
        packed = {name: np.packbits(mask.cpu().numpy().reshape(-1)) for name, mask in self.masks.items()}
        shapes = {name: list(mask.shape) for name, mask in self.masks.items()}
        os.makedirs(directory, exist_ok=True)
        path = os.path.join(directory, FILE_NAME)
        tensors = {name: torch.from_numpy(bits) for name, bits in packed.items()}
        with written_whole(path) as unfinished:
            save_file(tensors, unfinished, metadata={"shapes": json.dumps(shapes)})

    @classmethod
    def load(cls, directory: str) -> "Partition":
        """Read what `save` wrote. Raises ValueError if the directory has no partition."""
        path = os.path.join(directory, FILE_NAME)
        if not os.path.isdir(directory):
            raise ValueError(f"resume_from_checkpoint={directory!r} is not a directory: name one that save wrote.")
        if not os.path.isfile(path):
            raise ValueError(
                f"resume_from_checkpoint={directory!r} has no {FILE_NAME}: the parameters were split at weights that "
                "no longer exist, so the run cannot be resumed from it. Start again from the original model."
            )
        masks = {}
        with safe_open(path, framework="pt") as file:
            for name, shape in json.loads(file.metadata()["shapes"]).items():
                size = int(np.prod(shape, dtype=np.int64))
                bits = np.unpackbits(file.get_tensor(name).numpy(), count=size).astype(bool)
                masks[name] = torch.from_numpy(bits).reshape(shape)
        return cls(masks)


def gradient_saliency(
    model: nn.Module,
    batches: Iterable[tuple[Any, int]],
    loss: Callable[[nn.Module, Any, int], Tensor],
    processes: int = 1,
) -> dict[str, Tensor]:
    """| sum over all samples of the gradient of their loss |, by parameter name, float32.

    batches: (inputs, number of items in the loss's mean) of this process; loss(model, inputs, items) is that mean, or
    one value per sample. The model is run in eval mode and full precision, and comes back as it was, buffers and
    gradients included.
    """
    named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    total = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in named.items()}
    try:
        with full_precision(model), evaluating(model):
            for inputs, items in batches:
                value = loss(model, inputs, items)
                (value * items if value.ndim == 0 else value.sum()).backward()
                for name, weight in named.items():
                    if weight.grad is not None:
                        total[name] += weight.grad
                        weight.grad = None
    finally:
        for weight in named.values():
            weight.grad = None
    all_reduce_mean(list(total.values()), processes)  # a mean ranks like a sum
    return {name: value.abs_() for name, value in total.items()}


def _size_of_part(fraction: float, total: int) -> int:
    return total if fraction == 1 else min(max(round(fraction * total), 1), total - 1)


def _ordered_bits(value: Tensor) -> Tensor:
    """Floats >= 0 as int32 that compare the same way: exact ranks without a sort."""
    return value.detach().float().contiguous().abs().view(torch.int32)


def _kth_largest(bits: Mapping[str, Tensor], k: int) -> tuple[int, int]:
    """Return (t, n): the k largest are all values above t and n of those equal to t.

    Two histograms of 16 bits each find the k-th largest of any number of elements with no concatenation and no sort.
    """
    high, above = _bucket_of(torch.stack([_histogram(b.view(-1) >> 16) for b in bits.values()]).sum(0), k)
    low_counts = [_histogram(b.view(-1)[(b.view(-1) >> 16) == high] & 0xFFFF) for b in bits.values()]
    low, above_low = _bucket_of(torch.stack(low_counts).sum(0), k - above)
    return (high << 16) | low, k - above - above_low


def _histogram(values: Tensor) -> Tensor:
    return torch.bincount(values.long(), minlength=1 << 16).cpu()


def _bucket_of(counts: Tensor, k: int) -> tuple[int, int]:
    """Bucket that holds the k-th largest value, and how many values lie in the buckets above it."""
    from_top = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(from_top, k))
    return len(counts) - 1 - place, int(from_top[place - 1]) if place else 0
