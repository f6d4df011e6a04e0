"""Models whose passes are CUDA graphs, captured by torch.compile or by the user: a graph reads weights, and writes
outputs and gradients, at the same addresses each time. Played on the CPU by models that do just that."""

import pytest
import torch
from parts import BatchNormNet, Mlp, assert_same, assert_same_updates, rows, weights_of
from torch._dynamo.backends import registry
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from hf_sharp_unlearn import ASAM, SAM, NegGradPlus, Scrub, SharpMinMax

METHODS = [SharpMinMax(0.8, ASAM(0.1), overlap=False), SharpMinMax(0.8, SAM(0.1), scope="all"),
           NegGradPlus(0.8, ASAM(0.1)), NegGradPlus(0.8), Scrub(msteps=1)]  # fmt: skip


class Captured(torch.autograd.Function):
    """x W^T, as a graph that was captured once computes it: from the memory where W lay then, into the same memory."""

    memory: dict = {}

    @staticmethod
    def forward(ctx, x, weight):
        there = Captured.memory.setdefault(("weight", id(weight)), weight.detach())
        ctx.save_for_backward(x, there)
        ctx.key = id(weight)
        return Captured.into(("out", ctx.key, len(x)), x @ there.T)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight, Captured.into(("grad", ctx.key), grad.T @ x)

    @staticmethod
    def into(key, value):
        return Captured.memory.setdefault(key, torch.empty_like(value)).copy_(value).detach()


class Graphed(Mlp):
    """Mlp, its first layer's product captured, or not."""

    captured = True

    def forward(self, x, labels=None):
        weight = self.first.weight
        product = Captured.apply(x, weight) if self.captured else x @ weight.T
        logits = self.second(self.dropout(torch.tanh(product + self.first.bias)))
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


class NotGraphed(Graphed):
    captured = False


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_model_with_captured_graphs_is_trained_as_any_other(make_trainer, method, accumulation):
    ends = []
    for model, in_place in ((NotGraphed(dropout=0.3), False), (Graphed(dropout=0.3), True)):
        Captured.memory = {}
        trainer = make_trainer(method, model=model, data=rows(40), num_train_epochs=1, in_place=in_place,
                               gradient_accumulation_steps=accumulation)  # fmt: skip
        trainer.train()
        ends.append(weights_of(trainer.model))
    assert_same(*ends)


def test_the_played_graph_is_one(make_trainer):
    """Without `in_place` it does not see the perturbation: the reason why the argument exists."""
    ends = []
    for in_place in (False, True):
        Captured.memory = {}
        trainer = make_trainer(METHODS[0], model=Graphed(), data=rows(40), max_steps=2, in_place=in_place)
        trainer.train()
        ends.append(weights_of(trainer.model)["first.weight"])
    assert not torch.equal(*ends)


class StaticOutputs:
    """A compiler whose code writes every result to the memory of the first call, as cudagraphs do."""

    def __call__(self, graph, inputs):
        outputs = {}

        def run(*args):
            found = graph(*args)
            kept = []
            for i, value in enumerate(found):
                if torch.is_tensor(value) and not any(value is arg for arg in args):
                    key = i, value.shape, value.dtype
                    if key not in outputs:
                        outputs[key] = value.detach().clone()
                    value = outputs[key].copy_(value.detach()).detach()
                kept.append(value)
            return tuple(kept)

        return make_boxed_func(run)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("method", METHODS[:3], ids=str)
def test_a_compiled_model_whose_gradients_share_memory(make_trainer, monkeypatch, method, accumulation):
    """With BatchNorm, whose buffers the code writes, and a last batch that is smaller."""
    compiler = StaticOutputs()
    registry.lookup_backend("aot_eager")  # so that it is there
    monkeypatch.setitem(registry._COMPILER_FNS, "aot_eager", aot_autograd(fw_compiler=compiler, bw_compiler=compiler))
    torch._dynamo.reset()
    settings = {"data": rows(25, shape=(1, 5, 5)), "num_train_epochs": 1,
                "gradient_accumulation_steps": accumulation}  # fmt: skip
    eager = make_trainer(method, model=BatchNormNet(), **settings)
    eager.train()
    compiled = make_trainer(
        method, model=BatchNormNet(), torch_compile=True, torch_compile_backend="aot_eager", **settings
    )
    compiled.train()
    torch._dynamo.reset()
    assert_same_updates(weights_of(compiled.model), weights_of(eager.model), weights_of(BatchNormNet()))
