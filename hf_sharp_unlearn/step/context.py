"""What is fixed while the steps of a run are made."""

import contextlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import backend_for
from ..runtime import allowing_tf32, cast_in_force, full_precision
from .population import Population
from .sweeps import must_stay

# loss(model, stream, inputs, items in the mean) -> a scalar mean, or one value a sample
StreamLoss = Callable[[nn.Module, str, dict, int], Tensor]


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """Made once a run; a `Window` adds the micro-batches of one step.

    model: what is called (DDP or compiled wrapper included). module: what owns parameters and buffers.
    accelerator: for backward, no_sync and the gradient scaler. kernels: a backend. masks: the partition by parameter
    name, as `packed` made it. sync: perturb along the gradient of all processes, not each along its own.
    in_place: see `sweeps.Sweeps`. measure: record there what becomes of perturbations. full_precision: make every pass
    without autocast and TF32, whatever is in force around it. population: whole data sets, for a method that makes one
    step.
    shadows: memory for perturbed weights, by position; it fills with the first step.
    """

    model: nn.Module
    module: nn.Module
    loss: StreamLoss
    accelerator: Any
    kernels: ModuleType
    masks: Mapping[str, Tensor] | None = None
    sync: bool = True
    in_place: bool = False
    measure: bool = False
    full_precision: bool = False
    population: Population | None = None
    shadows: dict[int, Tensor] = field(default_factory=dict)

    def precision(self) -> contextlib.AbstractContextManager:
        """What a pass runs in, backward too."""
        stack = contextlib.ExitStack()
        if self.full_precision:
            stack.enter_context(full_precision(self.module))
            stack.enter_context(allowing_tf32(False))
        return stack

    def cast(self) -> Callable[[Tensor], Tensor] | None:
        """What products of a pass make of a weight (see `runtime.cast_in_force`)."""
        if self.full_precision:
            return None
        device = next(self.module.parameters()).device
        return cast_in_force(device, getattr(self.accelerator, "mixed_precision", None))

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that steps move, by name. Raises ValueError if they are not those of the partition."""
        named = {name: weight for name, weight in self.module.named_parameters() if weight.requires_grad}
        if self.masks is not None and self.masks.keys() != named.keys():
            raise ValueError(
                f"The partition and the trainable parameters differ in {sorted(self.masks.keys() ^ named.keys())[:3]}: "
                "requires_grad was changed after the run began. Freeze or unfreeze before train()."
            )
        return named


def choose_kernels(model: nn.Module, device: torch.device, name: str) -> ModuleType:
    """The backend of that name, or the best one for the model. Raises ValueError for one that cannot run here."""
    return backend_for(device, [weight for weight in model.parameters() if weight.requires_grad], name)


def moves_in_place(model: nn.Module, compiled: bool) -> bool:
    """True if weights must be perturbed where they lie: a graph that was compiled or captured may hold their addresses,
    and so may something else that lies in their memory."""
    return compiled or must_stay(model) or any(module._compiled_call_impl is not None for module in model.modules())


def without_wrapper(model: Any) -> Any:
    """What `torch.compile` was called with, compiled in place as it was asked for: its wrapper hides the model's
    signature and gives its weights other names. Anything else is returned as it is."""
    module = getattr(model, "_orig_mod", None)
    if module is None:
        return model
    compiler = getattr(model, "dynamo_ctx", None)
    if compiler is None:
        warnings.warn("model: what torch.compile was asked for cannot be read: it is trained uncompiled.", stacklevel=3)
    else:
        module._compiled_call_impl = compiler(module._call_impl)  # as `module.compile()` does
    return module
