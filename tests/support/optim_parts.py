"""What the optimizer tests share: settings, parameters in two groups, and a run of a few steps."""

import pytest
import torch
from kernel_parts import HERE, tensors

from hf_sharp_unlearn.step import optim

SETTINGS = [
    (optim.SGD, {"lr": 0.1}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    (optim.SGD, {"lr": 0.1, "momentum": 0.9, "maximize": True}),
    (optim.AdamW, {"lr": 0.01}),
    (optim.AdamW, {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1, "maximize": True}),
]
names = [f"{cls.__name__}-{'-'.join(options)}" for cls, options in SETTINGS]
each = pytest.mark.parametrize(("cls", "options"), SETTINGS, ids=names)
staged = pytest.mark.parametrize("backend", HERE)


def parameters(dtype=torch.float32, seed=1):
    return [torch.nn.Parameter(value) for value in tensors(seed, dtype)]


def groups(params):
    """Two groups, as Trainer makes them: with and without decay, with learning rates of their own."""
    return [{"params": params[::2]}, {"params": params[1::2], "weight_decay": 0.0, "lr": 0.03}]


def run(cls, options, dtype, steps, backend=None, start=None, scale=1.0):
    """Steps along fixed gradients; every third gradient of weight 3 is None. Returns parameters and optimizer."""
    params = parameters(dtype) if start is None else start
    optimizer = cls(groups(params), **options)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for step in range(steps):
        for i, (param, grad) in enumerate(zip(params, tensors(50 + step, dtype), strict=True)):
            param.grad = None if i == 3 and step % 3 == 1 else grad * (scale if backend is None else 1)
        if backend is not None:
            optimizer.stage(scale=scale, backend=backend)
        optimizer.step()
        schedule.step()
    return params, optimizer
