"""Pictures of all kinds become the same 8-bit levels in memory, on disk and anew; broken ones are named."""

import io
import warnings

import numpy as np
import pytest
import torch
from optional_packages import datasets
from PIL import Image
from transformers import ResNetConfig, ViTImageProcessor

from hf_sharp_unlearn.data.pictures import Pictures, eight_bit
from hf_sharp_unlearn.data.sources import prepare
from hf_sharp_unlearn.data.tables import read_table

WAYS = ("memory", "disk", "process")


def grey(values, kind):
    return Image.fromarray(np.asarray(values, dtype=kind))


@pytest.mark.parametrize(
    ("picture", "levels"),
    [
        (grey([[0, 257, 32896, 65535]], np.uint16), [0, 1, 128, 255]),
        (grey([[0, 7, 200, 255]], np.int32), [0, 7, 200, 255]),
        (grey([[0, 257, 32896, 65535]], np.int32), [0, 1, 128, 255]),
        (grey([[0, 0.2, 0.5, 1]], np.float32), [0, 51, 128, 255]),
        (grey([[0, 3.4, 99.6, 255]], np.float32), [0, 3, 100, 255]),
        (grey([[0, 7, 200, 255]], np.uint8), [0, 7, 200, 255]),
        (grey([[0, 255]], np.uint8).convert("1"), [0, 255]),
    ],
)
def test_more_than_8_bits_are_scaled(picture, levels):
    assert np.asarray(eight_bit(picture, "L")).ravel().tolist() == levels
    assert np.asarray(eight_bit(picture, "RGB"))[..., 1].ravel().tolist() == levels


@pytest.mark.parametrize(
    ("values", "kind"), [([[-3, 9]], np.int32), ([[0, 70000]], np.int32), ([[0.0, 256.0]], np.float32),
                         ([[-0.1, 0.5]], np.float32), ([[np.nan, 1]], np.float32)]
)  # fmt: skip
def test_ranges_that_are_not_known_are_refused(values, kind):
    with pytest.raises(ValueError, match="Picture in row 4: its .* must lie in 0 to"):
        Pictures("RGB", "image")([grey(values, kind)], [4])


def test_transparent_pictures_lie_on_white():
    colours = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    made = np.asarray(eight_bit(Image.fromarray(colours), "RGB")).tolist()
    assert made == [[[200, 0, 0], [255, 255, 255], [204, 204, 204]]]
    assert np.asarray(eight_bit(Image.fromarray(colours[..., [0, 3]]), "L")).tolist() == [[200, 255, 204]]
    one = Image.fromarray(np.zeros((1, 2), dtype=np.uint8)).convert("P")
    one.info["transparency"] = 0
    assert np.asarray(eight_bit(one, "L")).tolist() == [[255, 255]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("model"))
    ResNetConfig(id2label={0: "ash", 1: "oak"}, label2id={"ash": 0, "oak": 1}).save_pretrained(folder)
    ViTImageProcessor(size={"height": 6, "width": 6}).save_pretrained(folder)
    return folder


def folder_of(path, **odd):
    draw = np.random.default_rng(0)
    for name in ("ash", "oak"):
        (path / name).mkdir(parents=True)
        Image.fromarray(draw.integers(256, size=(9, 9, 3), dtype=np.uint8)).save(path / name / "plain.png")
    for name, content in odd.items():
        (path / "oak" / name.replace("_", ".")).write_bytes(content)
    return str(path)


def encoded(picture, form="png", **options):
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def test_the_three_ways_see_the_same(tmp_path, model):
    turned = Image.fromarray(np.repeat(np.array([[255], [0]], dtype=np.uint8), 8, 1).repeat(4, 0))
    exif = turned.getexif()
    exif[274] = 8
    draw = np.random.default_rng(1)
    folder = folder_of(
        tmp_path / "data",
        deep_png=encoded(grey(np.linspace(0, 65535, 81).reshape(9, 9), np.uint16)),
        glass_png=encoded(Image.fromarray(draw.integers(256, size=(9, 9, 4), dtype=np.uint8))),
        print_jpg=encoded(Image.fromarray(draw.integers(256, size=(9, 9, 3), dtype=np.uint8)).convert("CMYK"), "jpeg"),
        turned_jpg=encoded(turned, "jpeg", exif=exif, quality=95),
    )  # fmt: skip
    made = [prepare(read_table(folder), folder, model, images=way) for way in WAYS]
    for row in range(len(made[0])):
        first, *others = (data[row]["pixel_values"] for data in made)
        for other in others:
            torch.testing.assert_close(first, other, atol=1e-5, rtol=0)
    last = (made[0][len(made[0]) - 1]["pixel_values"] + 1) / 2
    assert last[0, :, 0].mean() > 0.9 and last[0, :, -1].mean() < 0.1, "turned left by a quarter"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["cut", "empty", "text", "large"])
def test_a_broken_picture_is_named_by_file_row_and_cause(tmp_path, model, way, kind, monkeypatch):
    noise = Image.fromarray(np.random.default_rng(0).integers(256, size=(90, 90, 3), dtype=np.uint8))
    content = {
        "cut": encoded(noise)[:9000],
        "empty": b"", "text": b"no picture", "large": encoded(Image.new("1", (99, 99))),
    }[kind]  # fmt: skip
    folder = folder_of(tmp_path / "data", broken_png=content)
    if kind == "large":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(ValueError, match=r"Picture .*broken\.png', in row 1: .+\. Repair it, or leave it out"):
        data = prepare(read_table(folder), folder, model, images=way)
        [data[row] for row in range(len(data))]


def test_pictures_in_a_table_are_named_by_row(tmp_path, model):
    cells = [{"bytes": encoded(Image.new("L", (9, 9), 7 * i)), "path": None} for i in range(4)]
    cells[2] = {"bytes": b"GIF89a", "path": None}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    for cell in (cells[2], None):
        cells[2] = cell
        datasets.Dataset.from_dict({"image": cells, "label": [0, 1, 0, 1]}, features).to_parquet(tmp_path / "t.parquet")
        for way in WAYS:
            data = read_table(str(tmp_path / "t.parquet"))
            with pytest.raises(ValueError, match="Picture in row 2: "):
                data = prepare(data, "t", model, images=way)
                data[3], data.select([1, 2])[1]


def test_a_picture_near_the_limit_is_named_in_a_warning(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9000)
    cell = {"bytes": encoded(Image.new("1", (99, 99))), "path": "huge.png"}
    with pytest.warns(Image.DecompressionBombWarning, match="Picture 'huge.png', in row 7: Image size .9801 pixels."):
        Pictures("L", "image")([cell], [7])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Pictures("L", "image")([{"bytes": encoded(Image.new("1", (9, 9))), "path": None}], [7])
