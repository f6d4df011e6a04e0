"""What the steps of a run work on: its trainable parameters, the sweeps over them, the model's buffers.

Walking a model's modules costs the host more than a sweep, so it is done once a run, and again only if the model has
changed under way: other modules, other parameters, another `requires_grad`, weights at another address.
"""

from operator import is_

from torch import Tensor, nn

from ..runtime import Buffers
from .context import StepContext
from .sweeps import Sweeps


class Structure:
    """params: the trainable parameters, in the model's order. sweeps, buffers: over these, and the model's own.

    Raises ValueError if the parameters are not those of the partition.
    """

    def __init__(self, context: StepContext):
        named = context.trainable()
        self.params = list(named.values())
        self.sweeps = Sweeps(
            self.params,
            None if context.masks is None else [context.masks[name] for name in named],
            context.kernels,
            context.shadows,
            context.in_place,
            context.cast if context.measure else None,
        )
        self.buffers = Buffers(context.module)
        self._modules = [
            (module, list(module._modules.values()), list(module._parameters.values()), list(module._buffers))
            for module in context.module.modules()
        ]
        self._all = list(context.module.parameters())
        self._flags = [weight.requires_grad for weight in self._all]

    def holds(self) -> bool:
        """True while the model is what it was when this was made, weights' values and buffers' contents apart."""
        return (
            all(
                _same(children, module._modules) and _same(weights, module._parameters)
                and names == list(module._buffers)
                for module, children, weights, names in self._modules
            )
            and self._flags == [weight.requires_grad for weight in self._all]
            and self.sweeps.in_their_place()
        )  # fmt: skip


def _same(known: list[nn.Module | Tensor | None], now: dict) -> bool:
    return len(known) == len(now) and all(map(is_, known, now.values()))
