"""Random state: seeds as pure functions of what they are for, and blocks that leave the global state alone."""

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on all parts and on nothing else (Python's `hash` is salted per process)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_host(seed: int) -> None:
    """Seed Python, numpy and torch's CPU generator; device generators are not touched."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


def seed_all(seed: int, device: torch.device) -> None:
    """Seed the host's generators and the device's."""
    seed_host(seed)
    if device.type not in ("cpu", "meta"):
        torch.get_device_module(device).manual_seed(seed)


@contextlib.contextmanager
def isolated_rng() -> Iterator[None]:
    """Put the host generators back where they were, whatever the block drew or raised."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class RngState:
    """A snapshot of every generator that a forward pass may draw from (dropout, stochastic depth, layer drop)."""

    def __init__(self, device: torch.device):
        self._device = device if device.type not in ("cpu", "meta") else None
        self._host = random.getstate(), np.random.get_state(), torch.get_rng_state()
        if self._device is not None:
            self._accelerator = torch.get_device_module(self._device).get_rng_state(self._device)

    def restore(self) -> None:
        random.setstate(self._host[0])
        np.random.set_state(self._host[1])
        torch.set_rng_state(self._host[2])
        if self._device is not None:
            torch.get_device_module(self._device).set_rng_state(self._accelerator, self._device)
