"""The mask: exactly the k largest of all elements, ties by parameter order then index, exact through a file."""

import pytest
import torch
from parts import BatchNormNet, Mlp, assert_same, assert_same_updates, weights_of

from hf_sharp_unlearn import Partition
from hf_sharp_unlearn.step.partition import gradient_saliency


def by_sorting(saliency, fraction):
    """The definition, with one stable sort of everything."""
    flat = torch.cat([value.reshape(-1) for value in saliency.values()])
    keep = min(max(round(fraction * len(flat)), 1), len(flat) - 1)
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[flat.sort(descending=True, stable=True).indices[:keep]] = True
    pieces = mask.split([value.numel() for value in saliency.values()])
    return {name: piece.view_as(saliency[name]) for name, piece in zip(saliency, pieces, strict=True)}


@pytest.mark.parametrize("fraction", [1e-9, 0.001, 0.05, 0.3, 0.5, 0.999, 1 - 1e-9])
@pytest.mark.parametrize("kind", ["normal", "ties", "zeros", "wide", "strided"])
def test_the_mask_is_what_sorting_everything_gives(fraction, kind):
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (7, 11), "scalar": (), "empty": (0, 3), "c": (301,), "d": (2, 3, 4, 5)}
    saliency = {name: torch.randn(shape, generator=generator).abs() for name, shape in shapes.items()}
    if kind == "ties":
        saliency = {name: (value * 3).floor() for name, value in saliency.items()}
    if kind == "zeros":
        saliency = {name: torch.zeros_like(value) for name, value in saliency.items()}
    if kind == "wide":  # denormals to near the largest float32
        saliency = {name: torch.pow(10.0, (value - 1) * 38).clamp(max=3e38) for name, value in saliency.items()}
    if kind == "strided":
        saliency["a"], saliency["d"] = saliency["a"].t(), saliency["d"].to(memory_format=torch.channels_last)
    masks = Partition.from_saliency(saliency, fraction).masks
    for name, expected in by_sorting(saliency, fraction).items():
        assert masks[name].dtype == torch.bool and torch.equal(masks[name], expected), name


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_saliency_that_is_not_finite_is_refused(value):
    with pytest.raises(FloatingPointError, match="layer.weight"):
        Partition.from_saliency({"layer.weight": torch.tensor([1.0, value])}, 0.5)


def test_a_model_of_one_parameter_cannot_be_split():
    with pytest.raises(ValueError, match="at least 2"):
        Partition.from_saliency({"w": torch.ones(1)}, 0.5)


def test_saved_and_loaded_masks_are_the_same_and_take_one_bit_each(tmp_path):
    saliency = {"a.weight": torch.rand(13, 17), "a.bias": torch.rand(1), "b": torch.rand(3, 1, 100)}
    partition = Partition.from_saliency(saliency, 0.3)
    partition.save(str(tmp_path / "new"))
    loaded = Partition.load(str(tmp_path / "new"))
    assert_same(partition.masks, loaded.masks)
    assert (tmp_path / "new" / "partition.safetensors").stat().st_size < 522 / 8 + 600


def test_saliency_sums_signed_per_sample_gradients_in_eval_mode():
    """Batches of any size give the same; opposite gradients cancel; the model comes back as it was."""
    model = BatchNormNet().train()
    model.conv.eval()
    start = weights_of(model)
    modes = {module: module.training for module in model.modules()}
    x, y = torch.randn(6, 1, 5, 5), torch.tensor([0, 1, 2, 0, 1, 2])

    def batches(size):
        return [({"x": x[i : i + size], "labels": y[i : i + size]}, len(y[i : i + size])) for i in range(0, 6, size)]

    def loss(net, inputs, items):
        return net(**inputs)["loss"]

    whole = gradient_saliency(model, batches(6), loss)
    assert_same_updates(gradient_saliency(model, batches(4), loss), whole)
    assert_same(start, weights_of(model))
    assert modes == {module: module.training for module in model.modules()}
    assert all(weight.grad is None for weight in model.parameters())

    def cancelling(net, inputs, items):
        sign = torch.tensor([1.0, -1.0])
        return sign * torch.stack([net(x[:1], y[:1])["loss"]] * 2)

    assert max(value.max() for value in gradient_saliency(model, [(None, 2)], cancelling).values()) == 0


def test_a_partition_is_checked_against_the_model():
    model = Mlp()
    partition = Partition.from_saliency({n: torch.rand_like(w) for n, w in model.named_parameters()}, 0.5)
    partition.check(model, 0.5, "the partition")
    for wrong in (
        {k: v for k, v in partition.masks.items() if k != "first.bias"},
        {**partition.masks, "first.bias": torch.zeros(9, dtype=torch.bool)},
        {**partition.masks, "third": torch.zeros(9, dtype=torch.bool)},
    ):
        with pytest.raises(ValueError, match="the partition does not match the model"):
            Partition(wrong).check(model, 0.5, "the partition")
