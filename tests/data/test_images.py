"""Images in memory and on disk: what the processor makes, augmentation that depends on the place in the run alone."""

import numpy as np
import pytest
import torch
from optional_packages import datasets
from parts import assert_same, weights_of
from PIL import Image
from transformers import (
    AutoImageProcessor,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    TimmWrapperConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from hf_sharp_unlearn import CropFlip, ImagesInMemory, NegGradPlus, split_forget
from hf_sharp_unlearn.data.images import _hash, cached_images
from hf_sharp_unlearn.data.loading import SeededDataset, StreamDataset
from hf_sharp_unlearn.data.sampling import Slot

PROCESSORS = {
    "vit": lambda: ViTImageProcessor(size={"height": 8, "width": 8}),
    "convnext": lambda: ConvNextImageProcessor(size={"shortest_edge": 8}, crop_pct=0.875),
    "plain": lambda: ViTImageProcessor(size={"height": 8, "width": 8}, do_normalize=False),
}


def pictures(count=10, size=12):
    draw = np.random.default_rng(0)
    images = [Image.fromarray(draw.integers(256, size=(size, size, 3), dtype=np.uint8)) for _ in range(count)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict({"image": images, "label": [i % 3 for i in range(count)]}, features)


def timm_processor(tmp_path):
    pretrained = {"input_size": [3, 8, 8], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic",
                  "crop_pct": 0.9}  # fmt: skip
    TimmWrapperConfig(architecture="resnet18", num_labels=3, pretrained_cfg=pretrained).save_pretrained(tmp_path)
    return AutoImageProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", [*PROCESSORS, "timm"])
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_samples_are_what_the_models_processor_makes(kind, where, tmp_path):
    processor = timm_processor(tmp_path) if kind == "timm" else PROCESSORS[kind]()
    table = pictures()
    make = ImagesInMemory.from_dataset if where == "memory" else cached_images
    data = make(table, processor, "image", "label")
    expected = processor([row["image"] for row in table], return_tensors="pt")["pixel_values"]
    found = torch.stack([data[i]["pixel_values"] for i in range(len(data))])
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
    assert [int(data[i]["labels"]) for i in range(len(data))] == table["label"][:]


def test_processors_between_the_levels_are_refused():
    processor = ViTImageProcessor(size={"height": 8, "width": 8}, rescale_factor=1 / 100)
    with pytest.raises(ValueError, match="between the 256 levels"):
        ImagesInMemory.from_dataset(pictures(), processor)


def test_what_cannot_be_kept_is_refused():
    pixels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="must be uint8"):
        ImagesInMemory(pixels.float(), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="give 4 classes"):
        ImagesInMemory(pixels, torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="padding=-1"):
        CropFlip(padding=-1)


def levels(count=32, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return ImagesInMemory(pixels, torch.arange(count) % 3, (0.5,) * 3, (0.25,) * 3)


def test_crop_and_flip_equal_their_definition():
    """Each sample: padded with black, a window at some offset, perhaps flipped; all offsets and both flips occur."""
    pixels, seeds = levels(400).pixels, torch.arange(400) * 7919
    found = CropFlip(padding=2).batch(pixels, seeds)
    drawn = set()
    for image, result in zip(pixels, found, strict=True):
        padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
        candidates = {
            (y, x, flip): window.flip(-1) if flip else window
            for y in range(5)
            for x in range(5)
            for window in [padded[:, y : y + 8, x : x + 8]]
            for flip in (False, True)
        }
        drawn.add(next(key for key, window in candidates.items() if torch.equal(window, result)))
    assert len(drawn) == 5 * 5 * 2
    assert torch.equal(CropFlip(padding=0, flip=False).batch(pixels, seeds), pixels)


def test_the_hash_is_splitmix64():
    def reference(seed):
        mask = (1 << 64) - 1
        z = (seed + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    seeds = [0, 1, 2**62 + 12345, 987654321987654321]
    found = [value & ((1 << 64) - 1) for value in _hash(torch.tensor(seeds)).tolist()]
    assert found == [reference(seed) for seed in seeds]


def test_a_sample_depends_on_its_place_in_the_run_and_on_nothing_else():
    data = levels().with_augmentation(CropFlip())
    streams = StreamDataset({"retain": data}, seed=3)
    slots = [Slot("retain", index, 0, position) for position, index in enumerate([5, 9, 5, 0, 17])]
    together = [sample["pixel_values"] for _, sample in streams.__getitems__(slots)]
    before = torch.random.get_rng_state()
    alone = [streams[slot][1]["pixel_values"] for slot in slots]
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    assert not torch.equal(together[0], together[2]), "the same image at two places"
    later = streams[Slot("retain", 5, 1, 0)][1]["pixel_values"]
    assert not torch.equal(later, together[0]), "the same place in another epoch"
    evaluated = SeededDataset(data, 0)
    assert torch.equal(evaluated[3]["pixel_values"], evaluated.__getitems__([1, 3])[1]["pixel_values"])


def test_any_transform_of_torchvision_can_augment():
    from torchvision.transforms import v2

    data = levels().with_augmentation(v2.RandomCrop(8, padding=2))
    first = data.fetch([1, 2, 1], [10, 20, 30])
    again = data.fetch([1], [10])
    assert torch.equal(first[0]["pixel_values"], again[0]["pixel_values"])
    assert not torch.equal(first[0]["pixel_values"], first[2]["pixel_values"])


def test_splits_share_the_images_and_are_told_apart(make_trainer):
    data = levels().with_augmentation(CropFlip())
    forget, retain = split_forget(data, [3, 4, 9])
    assert type(forget) is ImagesInMemory and forget.pixels is data.pixels and len(retain) == 29
    assert torch.equal(forget.for_evaluation()[1]["pixel_values"], data.for_evaluation()[4]["pixel_values"])
    with pytest.raises(ValueError, match="both|overlap|share"):
        make_trainer(
            NegGradPlus(), vision("resnet"), levels(), trainer={"forget_dataset": forget, "retain_dataset": data}
        )
    wrong = ImagesInMemory(data.pixels, torch.full((32,), 7))
    with pytest.raises(ValueError, match="labels outside the model's 3 classes"):
        make_trainer(NegGradPlus(), vision("resnet"), wrong)


def vision(kind):
    torch.manual_seed(0)
    tiny = {"num_labels": 3}
    if kind == "resnet":
        return ResNetForImageClassification(
            ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", **tiny)
        )
    if kind == "vit":
        config = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
                           image_size=8, patch_size=4, **tiny)  # fmt: skip
        return ViTForImageClassification(config)
    if kind == "convnext":
        config = ConvNextConfig(hidden_sizes=[4, 8], depths=[1, 1], num_stages=2, patch_size=2, **tiny)
        return ConvNextForImageClassification(config)
    config = SwinConfig(image_size=8, patch_size=2, embed_dim=4, depths=[1, 1], num_heads=[1, 2], window_size=2, **tiny)
    return SwinForImageClassification(config)


@pytest.mark.parametrize("kind", ["resnet", "vit", "convnext", "swin"])
def test_augmented_runs_resume_bitwise_with_any_number_of_workers(make_trainer, kind, tmp_path):
    data = levels().with_augmentation(CropFlip())

    def run(name, **arguments):
        trainer = make_trainer(NegGradPlus(), vision(kind), data, output_dir=tmp_path / name, **arguments)
        trainer.train(resume_from_checkpoint=arguments.get("resume_from_checkpoint"))
        return trainer

    whole = run("whole", save_strategy="steps", save_steps=5)
    resumed = run("resumed", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    assert_same(weights_of(whole.model), weights_of(resumed.model))
    if kind == "resnet":
        assert_same(weights_of(whole.model), weights_of(run("workers", dataloader_num_workers=2).model))


def test_evaluation_sees_the_images_as_they_are(make_trainer):
    data = levels()
    settings = {"model": vision("resnet"), "forget": range(6)}
    plain = make_trainer(NegGradPlus(), data=data, **settings).evaluate()
    augmented = make_trainer(NegGradPlus(), data=data.with_augmentation(CropFlip()), **settings).evaluate()
    for split in ("forget", "retain"):
        assert plain[f"eval_{split}_loss"] == augmented[f"eval_{split}_loss"]
    cached = cached_images(pictures(), PROCESSORS["vit"](), "image", "label", CropFlip())
    trainer = make_trainer(NegGradPlus(), data=cached, model=vision("resnet"), forget=[0, 1])
    for split, rows in (("forget", [0, 1]), ("retain", range(2, 10))):
        seen = trainer.eval_dataset[split]
        bare = cached_images(pictures(), PROCESSORS["vit"](), "image", "label")
        for place, row in enumerate(rows):
            assert torch.equal(seen[place]["pixel_values"], bare[row]["pixel_values"])
    assert not torch.equal(cached[0]["pixel_values"], cached[0]["pixel_values"]), "training images are augmented"
