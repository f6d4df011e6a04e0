"""What `auto_find_batch_size` needs: a failed attempt must leave nothing behind before the next one starts."""

import copy
from typing import Any

import torch
from torch import nn

from .rng import RngState


class Attempt:
    """Weights, buffers, optimizer and generators at the start of an attempt, kept in host memory."""

    def __init__(self, module: nn.Module, optimizer: Any, device: torch.device):
        self._module, self._optimizer = module, optimizer
        self._state = {name: value.detach().to("cpu", copy=True) for name, value in _tensors(module).items()}
        self._optimizer_state = None if optimizer is None else copy.deepcopy(optimizer.state_dict())
        self._rng = RngState(device)

    def undo(self) -> None:
        for name, value in _tensors(self._module).items():
            value.detach().copy_(self._state[name])
        for weight in self._module.parameters():
            weight.grad = None
        if self._optimizer is not None:
            self._optimizer.load_state_dict(self._optimizer_state)
        self._rng.restore()


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
