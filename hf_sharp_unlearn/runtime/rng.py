"""Random state: seeds as pure functions of what they are for, and blocks that leave the global state alone."""

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

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
        self._generators = _generators(device)
        self._states = {name: get() for name, (get, _) in self._generators.items()}

    def restore(self, names: Iterable[str] | None = None) -> None:
        """Put the generators back, or those of these names only."""
        for name in self._states if names is None else names:
            self._generators[name][1](self._states[name])

    def moved(self, later: "RngState") -> list[str]:
        """Names of the generators whose state is another one in the later snapshot."""
        return [name for name, state in self._states.items() if not _equal(state, later._states[name])]


def _generators(device: torch.device) -> dict[str, tuple[Callable[[], Any], Callable[[Any], None]]]:
    """(read, write) of each generator, by name."""
    found = {
        "python": (random.getstate, random.setstate),
        "numpy": (np.random.get_state, np.random.set_state),
        "torch": (torch.get_rng_state, torch.set_rng_state),
    }
    if device.type not in ("cpu", "meta"):
        module = torch.get_device_module(device)
        found[device.type] = partial(module.get_rng_state, device), partial(module.set_rng_state, device=device)
    return found


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_equal, a, b)) if any(map(_is_array, a)) else a == b
    return torch.equal(a, b) if torch.is_tensor(a) else np.array_equal(a, b)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)
