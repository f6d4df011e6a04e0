"""The relearning attack and the fine-tuning that it is made of."""

import pytest
import torch
from parts import BatchNormNet, Mlp, assert_same, differs, images, rows, timm_resnet, weights_of

from hf_sharp_unlearn.analysis import Relearning, fine_tune, relearning_attack
from hf_sharp_unlearn.metrics import collect_outputs


def quiet_attack(model, forget, retain=None, **options):
    return relearning_attack(model, forget, retain, Relearning(**options), progress=False)


def test_fine_tuning_trains_a_copy_and_leaves_the_model_and_the_generators():
    for model, data in (
        (Mlp(dropout=0.3), rows(20)),
        (BatchNormNet(), rows(20, (1, 5, 5))),
        (timm_resnet(), images(20)),
    ):
        before, state = weights_of(model), torch.get_rng_state()
        copy = fine_tune(model, data, 5, learning_rate=0.05, batch_size=8, progress=False)
        assert_same(before, weights_of(model))
        assert differs(before, weights_of(copy)) and torch.equal(state, torch.get_rng_state())
        again = fine_tune(model, data, 5, learning_rate=0.05, batch_size=8, progress=False)
        assert_same(weights_of(copy), weights_of(again))
        assert differs(
            weights_of(copy), weights_of(fine_tune(model, data, 5, learning_rate=0.05, seed=1, progress=False))
        )


def test_fine_tuning_equals_a_plain_loop():
    model, data = Mlp(), rows(4)
    copy = fine_tune(model, data, 2, learning_rate=0.1, batch_size=4, optimizer=torch.optim.SGD, progress=False)
    plain = Mlp()
    x, y = torch.stack([row["x"] for row in data]), torch.tensor([row["labels"] for row in data])
    for _ in range(2):
        grads = torch.autograd.grad(plain(x, y)["loss"], list(plain.parameters()))
        for weight, grad in zip(plain.parameters(), grads, strict=True):
            weight.data -= 0.1 * grad
    for a, b in zip(copy.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_fine_tuning_stops_when_told_and_refuses():
    seen = []
    fine_tune(
        Mlp(), rows(6), 9, learning_rate=0.1, on_step=lambda step, m: seen.append(step) or step == 3, progress=False
    )
    assert seen == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="dataset is empty"):
        fine_tune(Mlp(), [], 1, learning_rate=0.1)
    broken = Mlp()
    torch.nn.init.constant_(broken.second.bias, torch.inf)
    with pytest.raises(FloatingPointError, match="at step 1 of fine-tune: lower the learning rate"):
        fine_tune(broken, rows(4), 5, learning_rate=0.1, progress=False)


def test_a_dormant_model_relearns_faster_than_one_that_never_knew():
    """The forget set follows a rule. `dormant` knows it, but says class 0 to everything."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(200, 6, generator=draw)
    forget = [{"x": x[i], "labels": int((x[i, 0] > 0) + (x[i, 1] > 0))} for i in range(100)]
    known = fine_tune(Mlp(), forget, 300, learning_rate=0.05, progress=False)
    dormant = Mlp()
    dormant.load_state_dict(known.state_dict())
    never = Mlp(seed=5)
    for model in (dormant, never):
        model.second.bias.data += torch.tensor([40.0, 0.0, 0.0])
    options = {"samples": 10, "steps": 30, "every": 10, "learning_rate": 0.2}
    curves = [quiet_attack(model, forget, **options)["forget"] for model in (dormant, never)]
    assert curves[0].accuracy[0].value < 0.5, "it looks forgotten"
    assert curves[0].steps == [0, 10, 20, 30] and curves[0].trained == 10 and curves[0].watched == 90
    assert curves[0].area > curves[1].area + 0.1


def test_the_curve_starts_at_the_models_own_accuracy_and_its_area_is_the_mean():
    model, forget, retain = Mlp(), rows(20), rows(30, seed=3)
    curves = quiet_attack(model, forget, retain, samples=4, steps=7, every=3, learning_rate=0.1)
    assert list(curves) == ["forget", "retain"]
    watched = collect_outputs(model, forget, progress=False)
    assert curves["retain"].accuracy[0].value == pytest.approx(watched.correct.mean())
    assert curves["retain"].steps == [0, 3, 6, 7] and curves["retain"].watched == 20
    values = [point.value for point in curves["retain"].accuracy]
    area = (3 * (values[0] + values[1]) + 3 * (values[1] + values[2]) + values[2] + values[3]) / 2 / 7
    assert curves["retain"].area == pytest.approx(area)
    again = quiet_attack(model, forget, retain, samples=4, steps=7, every=3, learning_rate=0.1)
    assert again == curves, "same seed, same attack"


def test_at_most_half_of_a_small_forget_set_is_used_and_one_sample_is_refused():
    curves = quiet_attack(Mlp(), rows(5), samples=16, steps=1, every=1, learning_rate=0.1)
    assert curves["forget"].trained == 2 and curves["forget"].watched == 3
    with pytest.raises(ValueError, match="forget has 1 samples"):
        quiet_attack(Mlp(), rows(1))
    for name in ("samples", "steps", "every", "learning_rate", "batch_size"):
        with pytest.raises(ValueError, match=f"Relearning.{name}=0"):
            Relearning(**{name: 0})


def test_half_precision_frozen_and_odd_batches_are_attacked_like_others():
    """bf16 weights would round the small steps away, and everything would look resistant."""
    half, full = Mlp(dtype=torch.bfloat16), Mlp()
    full.load_state_dict({name: weight.float() for name, weight in half.state_dict().items()})
    trained = [fine_tune(model, rows(20), 40, learning_rate=1e-4, progress=False) for model in (half, full)]
    assert next(half.parameters()).dtype == torch.bfloat16
    for a, b in zip(*(model.parameters() for model in trained), strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)
    frozen = Mlp().requires_grad_(False)
    assert differs(weights_of(frozen), weights_of(fine_tune(frozen, rows(4), 2, learning_rate=0.1, progress=False)))
    assert not any(weight.requires_grad for weight in frozen.parameters())
    single = fine_tune(BatchNormNet(), rows(9, (1, 3, 3)), 4, learning_rate=0.1, batch_size=4, progress=False)
    assert not any(weight.isnan().any() for weight in single.parameters()), "a last batch of one, maps of one pixel"
