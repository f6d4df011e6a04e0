"""How many operations a call dispatches, and how many bytes they touch."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Traffic(TorchDispatchMode):
    """Counts dispatched operations and the bytes of their operands: what a provider without a meter costs.

    An upper bound of a CPU's traffic (caches), and what a GPU moves if every operation is a kernel of its own.
    """

    def __init__(self):
        super().__init__()
        self.calls = self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        view = any(a.alias_info is not None and not a.alias_info.is_write for a in function._schema.arguments)
        if not view and function._schema.returns:
            self.calls += 1
            self.bytes += sum(t.nbytes for t in _tensors((args, kwargs or {}, result)))
        elif not view:
            self.calls += 1
            self.bytes += sum(t.nbytes for t in _tensors((args, kwargs or {})))
            self.bytes += sum(
                t.nbytes
                for a, value in zip(function._schema.arguments, args, strict=False)
                if a.alias_info is not None and a.alias_info.is_write
                for t in _tensors(value)
            )
        return result


def _tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
