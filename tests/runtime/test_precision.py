"""Autocast: off inside the block and back after it; casts of weights that have moved are forgotten."""

import copy

import pytest
import torch
from parts import Mlp, assert_same, rows, weights_of

from hf_sharp_unlearn import SAM, Influence, NegGradPlus, Scrub, SharpMinMax
from hf_sharp_unlearn.runtime import forget_casts, full_precision


class Watched(Mlp):
    """Remembers in which precision it ran."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def forward(self, x, labels=None):
        self.seen.add(("train" if self.training else "eval", self.first(x).dtype))
        return super().forward(x, labels)

    def taken(self):
        seen, self.seen = self.seen, set()
        return seen


BF16, FP32 = torch.bfloat16, torch.float32
EXPECTED = {
    NegGradPlus(0.8): {("train", BF16)},
    SharpMinMax(0.8): {("eval", FP32), ("train", BF16)},  # the partition is made in full precision
    Scrub(msteps=0): {("train", BF16)},
    Influence(damping=0.1, iterations=1): {("eval", FP32)},
}


@pytest.mark.parametrize("method", EXPECTED, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("evaluate_first", [False, True])
def test_a_second_run_and_an_evaluation_compute_in_bf16_as_the_first(make_trainer, method, evaluate_first):
    model = Watched()
    trainer = make_trainer(method, model=model, bf16=True, max_steps=2)
    if evaluate_first:
        trainer.evaluate()
        assert model.taken() == {("eval", BF16)}
    for _ in range(2):
        trainer.train()
        assert model.taken() == EXPECTED[method]
        trainer.evaluate()
        assert model.taken() == {("eval", BF16)}


@pytest.mark.parametrize("method", [NegGradPlus(0.8, SAM(0.5)), SharpMinMax(0.8)], ids=str)
def test_a_run_inside_the_callers_autocast_is_a_run_with_bf16(make_trainer, method):
    """Perturbed weights are cast anew, and so are those that the optimizer has moved."""
    inside, own = make_trainer(method, max_steps=4), make_trainer(method, max_steps=4, bf16=True)
    with torch.autocast("cpu", BF16):
        inside.train()
        late = inside.evaluate()
    own.train()
    assert_same(weights_of(inside.model), weights_of(own.model))
    assert late["eval_retain_loss"] == pytest.approx(own.evaluate()["eval_retain_loss"], rel=1e-3)


def test_casts_are_forgotten():
    layer, x = torch.nn.Linear(4, 4), torch.ones(2, 4)
    with torch.autocast("cpu", BF16):
        before = layer(x)
        layer.weight.data.add_(1.0)
        assert torch.equal(layer(x), before), "torch keeps its casts; if it no longer does, forget_casts can go"
        forget_casts()
        assert not torch.equal(layer(x), before)


def test_full_precision_leaves_the_module_as_it_was(make_trainer):
    trainer = make_trainer(NegGradPlus(0.8), model=Watched(), bf16=True, max_steps=1)
    trainer.train()
    model, batch = trainer.model, {"x": rows(1)[0]["x"][None]}
    forward = model.forward
    with full_precision(model) as module, torch.no_grad():
        module(**batch)
        kept = copy.deepcopy(module)
    assert model.forward is forward and ("train", FP32) in model.taken()
    kept.seen.clear()
    kept(**batch)
    assert kept.seen == {("train", FP32)}, "a copy that is made inside has its own forward"
    with pytest.raises(RuntimeError, match="boom"), full_precision(model):
        raise RuntimeError("boom")
    assert model.forward is forward
