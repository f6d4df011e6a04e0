"""What `auto_find_batch_size` needs: a failed attempt must leave nothing behind before the next one starts."""

import copy
from typing import Any

import torch
from torch import nn

from ..runtime import RngState


class Attempt:
    """Weights, buffers, generators, and a user's own optimizer and scheduler, at the start of an attempt, in host
    memory."""

    def __init__(self, module: nn.Module, stateful: list[Any], device: torch.device):
        self._module = module
        self._state = {name: value.detach().to("cpu", copy=True) for name, value in _tensors(module).items()}
        self._states = [(owner, copy.deepcopy(owner.state_dict())) for owner in stateful if owner is not None]
        self._rng = RngState(device)

    def undo(self) -> None:
        for name, value in _tensors(self._module).items():
            value.detach().copy_(self._state[name])
        for weight in self._module.parameters():
            weight.grad = None
        for owner, state in self._states:
            owner.load_state_dict(state)
        self._rng.restore()


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
