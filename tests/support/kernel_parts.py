"""What the kernel tests share: backends, the device, odd tensors, and guard bands around them."""

import os

import pytest
import torch

from hf_sharp_unlearn.kernels import BACKENDS, load

GPU = os.environ.get("GPU_TESTS") == "1"
DEVICE = torch.device("cuda" if GPU else "cpu")
HERE = [name for name in BACKENDS if not (GPU and name == "tiled")]
backends = pytest.mark.parametrize("kernels", [load(name) for name in HERE], ids=HERE)
others = pytest.mark.parametrize("kernels", [load(n) for n in HERE if n != "reference"], ids=HERE[1:])

# Empty, one element, odd sizes, sizes that are walked 16 bytes at a time, beyond one tile of the CPU (which the tests
# shrink) or one chunk of Triton (2^14), channels_last, transposed, a slice that begins 4 bytes past an aligned address.
SHAPES = [(0, 4), (1,), (17,), (16,), (3, 5), (16, 8, 3, 3), (300, 7), (257, 1040), (4112,), (33,)]
ETAS = [None, 0.0, 0.1, None, 0.5, 0.1, 0.0, None, 0.2, 0.0]


def tensors(seed, dtype=torch.float32, shapes=SHAPES):
    """Normal values, the same whatever the dtype, in the layouts that the comment above names."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for i, shape in enumerate(shapes):
        value = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(DEVICE)
        if shape == (16, 8, 3, 3):
            value = value.to(memory_format=torch.channels_last)
        elif shape == (300, 7):
            value = value.t()
        elif i == len(SHAPES) - 1:
            value = torch.empty(value.numel() + 1, dtype=dtype, device=DEVICE)[1:].copy_(value)
        made.append(value)
    return made


def bool_masks(seed=9, shapes=SHAPES):
    return [value > 0.3 for value in tensors(seed, shapes=shapes)]


def copies(values):
    """Fresh tensors of the same layout and alignment."""
    made = []
    for value in values:
        if value.is_contiguous() and value.data_ptr() % 16:
            made.append(torch.empty(value.numel() + 1, dtype=value.dtype, device=DEVICE)[1:].view_as(value))
        else:
            made.append(torch.empty_like(value))
    return [new.copy_(value) for new, value in zip(made, values, strict=True)]


class Guarded:
    """Contiguous tensors, each in the middle of a larger buffer, `offset` elements past an aligned address."""

    def __init__(self, values, offset=0, band=64):
        self.buffers, self.tensors, self.places = [], [], []
        for value in values:
            low = band + offset
            buffer = torch.full((value.numel() + 2 * band + offset,), 77.0, device=DEVICE).to(value.dtype)
            self.buffers.append(buffer)
            self.places.append((low, low + value.numel()))
            self.tensors.append(buffer[low : low + value.numel()].view(value.shape).copy_(value))

    def check(self):
        for i, (buffer, (low, high)) in enumerate(zip(self.buffers, self.places, strict=True)):
            outside = torch.cat([buffer[:low], buffer[high:]])
            assert bool((outside == torch.full_like(outside, 77.0)).all()), f"something wrote around tensor {i}"


def assert_equal(a, b):
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        assert torch.equal(x, y), f"tensor {i} differs by {(x.double() - y.double()).abs().max()}"
