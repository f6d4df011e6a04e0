"""What a step asks of the host besides forward and backward: how often it waits for the device, how many small kernels
it launches. Counted on the CPU, where the same calls are made."""

import sys

import pytest
import torch
from parts import images, rows, timm_resnet
from transformers import TrainerCallback

from hf_sharp_unlearn import ASAM, NegGradPlus, SharpMinMax


class PerStep(TrainerCallback):
    """Counts between the beginning and the end of each step."""

    def __init__(self):
        self.now, self.steps = None, []

    def on_step_begin(self, args, state, control, **kwargs):
        self.now = []

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(self.now)
        self.now = None

    def see(self, what):
        if self.now is not None:
            self.now.append(what)


# A tensor that becomes a number of Python's: on a GPU the host waits there until the device has computed it.
READING = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "numpy")


def waits(monkeypatch, trainer):
    counts = PerStep()
    for name in READING:
        plain = getattr(torch.Tensor, name)

        def counted(tensor, *args, _plain=plain, _name=name, **kwargs):
            if "kernels" not in sys._getframe(1).f_globals["__name__"]:  # those of the CPU wait for nothing
                counts.see(_name)
            return _plain(tensor, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    trainer.add_callback(counts)
    trainer.train()
    return counts.steps


METHODS = [
    SharpMinMax(0.8, ASAM(0.1), overlap=False),
    SharpMinMax(0.8, ASAM(0.1), scope="all"),
    NegGradPlus(0.8, ASAM(0.1)),
    NegGradPlus(0.8),
]


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_host_waits_for_the_device_twice_a_step(make_trainer, monkeypatch, method, accumulation):
    """However many micro-batches: losses and norms are read together."""
    trainer = make_trainer(method, data=rows(40), max_steps=3, gradient_accumulation_steps=accumulation,
                           logging_strategy="no")  # fmt: skip
    for step in waits(monkeypatch, trainer):
        assert 1 <= len(step) <= 2, step


def test_buffers_of_a_resnet50_take_at_most_20_launches_a_step(make_trainer, monkeypatch):
    """torch copies at most 64 pairs of tensors in a launch. (It was 1,113 kernels, buffer by buffer.)"""
    counts = PerStep()
    plain = torch._foreach_copy_

    def counted(outs, sources, *args):
        if sys._getframe(1).f_globals["__name__"].endswith("buffers"):
            counts.see(-(-len(outs) // 64))
        return plain(outs, sources, *args)

    monkeypatch.setattr(torch, "_foreach_copy_", counted)
    model = timm_resnet(architecture="resnet50")
    assert len(list(model.buffers())) == 159
    trainer = make_trainer(METHODS[0], model=model, data=images(24), max_steps=2)
    trainer.add_callback(counts)
    trainer.train()
    assert [sum(step) for step in counts.steps] == [15, 15], counts.steps
