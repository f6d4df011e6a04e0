"""Which weights one call of an update kernel takes, and what is known of them from one step to the next.

A step's weights differ in device, dtype and rule: those that agree go into one call. Grouping them, and reading where
they and their moments lie, costs the host more than the launch, so it is done once a run, and again if something moved.
"""

from collections import defaultdict
from collections.abc import Sequence
from operator import is_

import torch
from torch import Tensor

from ..kernels.direction import NARROW
from ..kernels.table import Steady


class Call:
    """Weights that one call of a kernel updates, and what is known of them from one step to the next.

    indices: their places among the weights of the step. places: in which param group each is.
    """

    def __init__(self, params: Sequence[Tensor], indices: list[int], places: list[int]):
        self.indices, self.places = indices, places
        self.params = [params[i] for i in indices]
        self.weights = Steady(param.detach() for param in self.params)
        self._addresses = _addresses(self.params)
        self._moments: dict[str, tuple[Steady, list[int]]] = {}

    def holds(self) -> bool:
        """True while the weights lie where they lay."""
        return _addresses(self.params) == self._addresses

    def moments(self, states: Sequence[dict], name: str) -> Steady:
        """The weights' moments `name`, made where there are none, or none that a kernel can use."""
        now = [state.get(name) for state in states]
        kept, addresses = self._moments.get(name, ((), []))
        if _same(kept, now) and _addresses(now) == addresses:
            return kept
        kept = Steady(_moment(state, name, weight) for state, weight in zip(states, self.weights, strict=True))
        self._moments[name] = kept, _addresses(kept)
        return kept


def _addresses(tensors: Sequence[Tensor]) -> list[int]:
    return list(map(Tensor.data_ptr, tensors))


class Calls:
    """The calls of a step over `params`, for the groups as they are: made once a run, and again if either changes."""

    def __init__(self, params: Sequence[Tensor], groups: Sequence[dict]):
        self._params, self._members, self._kinds = list(params), _members(groups), _kinds(groups)
        place_of = {id(param): k for k, group in enumerate(groups) for param in group["params"]}
        places, calls = [place_of[id(param)] for param in params], defaultdict(list)
        for i, (param, place) in enumerate(zip(params, places, strict=True)):
            calls[param.device, param.dtype, *self._kinds[place]].append(i)
        self.calls = [Call(params, indices, [places[i] for i in indices]) for indices in calls.values()]

    def hold(self, params: Sequence[Tensor], groups: Sequence[dict]) -> bool:
        """True if they serve these too."""
        return (
            _same(params, self._params)
            and _same(_members(groups), self._members)
            and _kinds(groups) == self._kinds
            and all(call.holds() for call in self.calls)
        )


def _same(some: Sequence, others: Sequence) -> bool:
    return len(some) == len(others) and all(map(is_, some, others))


def _members(groups: Sequence[dict]) -> list:
    """The groups' weights in order, and where each group ends."""
    return [member for group in groups for member in (*group["params"], None)]


def _kinds(groups: Sequence[dict]) -> list[tuple]:
    """What the weights of one call must have in common."""
    return [(bool(group.get("momentum")), group["maximize"]) for group in groups]


def wide(weight: Tensor) -> torch.dtype:
    return torch.float32 if weight.dtype in NARROW else weight.dtype


def _moment(state: dict, name: str, weight: Tensor) -> Tensor:
    """The weight's moment `name`, in float32 and in the weight's memory order; zeros at its first step."""
    value = state.get(name)
    if value is None:
        value = torch.zeros_like(weight, dtype=wide(weight), requires_grad=False)
    elif value.dtype != wide(weight) or value.stride() != weight.stride():
        value = torch.empty_like(weight, dtype=wide(weight), requires_grad=False).copy_(value)
    state[name] = value
    return value
