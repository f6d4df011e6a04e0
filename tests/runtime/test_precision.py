"""Autocast: off inside the block and back after it; casts of weights that have moved are forgotten."""

import copy

import pytest
import torch
from parts import Mlp, assert_same, rows, weights_of

from hf_sharp_unlearn import SAM, Influence, NegGradPlus, Scrub, SharpMinMax
from hf_sharp_unlearn.runtime import allowing_tf32, cast_in_force, forget_casts, full_precision


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


PLACES = [torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn]


def legacy(matmul, convolution):
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolution


def newer(*values):
    for place, value in zip(PLACES, values, strict=True):
        place.fp32_precision = value


def readable(read):
    try:
        return read()
    except RuntimeError:
        return "refused"


def state():
    older = (lambda: PLACES[0].allow_tf32, lambda: torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision)
    return [place.fp32_precision for place in PLACES] + [readable(read) for read in older]


WAYS = [(legacy, (False, True)), (legacy, (True, False)), (legacy, (True, True)), (newer, ("tf32", "ieee", "tf32")),
        (newer, ("ieee", "tf32", "none"))]  # fmt: skip


@pytest.mark.parametrize(("say", "values"), WAYS)
def test_tf32_is_set_and_set_back_whichever_way_it_was_said(say, values):
    before = [place.fp32_precision for place in PLACES]
    try:
        say(*values)
        start = state()
        for allowed in (True, False):
            with allowing_tf32(allowed):
                assert [place.fp32_precision == "tf32" for place in PLACES] == [allowed] * 3
            assert state() == start
        with pytest.raises(RuntimeError, match="boom"), allowing_tf32(False):
            raise RuntimeError("boom")
        assert state() == start
    finally:
        legacy(False, True)
        newer(*before)


def test_casts_in_force():
    cpu, matrix, vector = torch.device("cpu"), torch.randn(3, 3), torch.randn(3)
    assert cast_in_force(cpu, None) is None and cast_in_force(cpu, "no") is None
    for mixed, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        cast = cast_in_force(cpu, mixed)
        assert torch.equal(cast(matrix), matrix.to(dtype).float()) and torch.equal(cast(vector), vector)
    with torch.autocast("cpu", BF16):
        assert torch.equal(cast_in_force(cpu, "no")(matrix), matrix.bfloat16().float())
    with allowing_tf32(True):  # of a GPU that is not there
        cast = cast_in_force(torch.device("cuda"), None)
    one = torch.tensor([[1 + 2**-10, 1 + 2**-11 + 2**-20, 1 + 2**-12, -1 - 2**-10 - 2**-12]])
    assert cast(one).tolist() == [[1 + 2**-10, 1 + 2**-10, 1, -1 - 2**-10]]
    with allowing_tf32(False):
        assert cast_in_force(torch.device("cuda"), None) is None
