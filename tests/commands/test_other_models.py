"""Data is prepared for each model that a command runs: other numbers of the classes, another tokenizer or processor."""

import json

import numpy as np
import pytest
import torch
from optional_packages import datasets
from PIL import Image
from text_models import WORDS, classifier, texts, twin, write_csv
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from hf_sharp_unlearn.commands import cli

NAMES = ["eel", "cat", "dog"]
ORDER = [2, 0, 1]
FAST = ["--use_cpu", "--max_steps", "2", "--per_device_train_batch_size", "8", "--svc-samples", "0", "--method",
        "neggrad"]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("other")
    model = classifier(root / "model", NAMES)
    twin(model, root / "twin", NAMES, ORDER, [*WORDS[:2], *WORDS[:1:-1]])
    classifier(root / "unnamed", labels=3)
    classifier(root / "strange", ["cat", "dog", "fox"])
    classifier(root / "two", ["cat", "dog"])
    draw = np.random.default_rng(1)
    for split, count in (("forget", 8), ("retain", 20), ("test", 10)):
        write_csv(root / f"{split}.csv", texts(count, seed=count), draw.choice(NAMES, size=count))
        write_csv(root / f"{split}-numbers.csv", texts(count, seed=count), draw.integers(3, size=count))
    return root


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def values_of(folder):
    metrics = json.loads((folder / "report.json").read_text())["metrics"]
    return {key: entry["unlearned"].get("value") for key, entry in metrics.items() if "unlearned" in entry}


@pytest.mark.parametrize("kind", ["", "-numbers"])
def test_a_twin_with_other_numbers_is_an_equal_model(world, tmp_path, kind):
    """Names in the data go through each model's config; numbers in it are those of --model."""
    data = [word for split in ("forget", "retain", "test") for word in (f"--{split}", world / f"{split}{kind}.csv")]
    command = ["evaluate", "--model", world / "model", "--reference", world / "twin", *data, "--svc-samples", 0,
               "--shadow-models", world / "twin", world / "model", "--relearn-steps", 2, "--relearn-samples", 4,
               "--device", "cpu", "--output-dir", tmp_path / "out"]  # fmt: skip
    assert run(*command) == 0
    values = values_of(tmp_path / "out")
    assert values["tug_of_war"] == 1 and values["agreement/test"] == 1
    assert values["jensen_shannon/forget"] == pytest.approx(0, abs=1e-9)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    for key in ("accuracy/retain", "loss/forget"):
        entry = report["metrics"][key]
        assert entry["unlearned"]["value"] == pytest.approx(entry["retrained"]["value"], abs=1e-6)
    one, other = (report["relearning"][name]["retain"] for name in ("unlearned", "retrained"))
    assert [p["value"] for p in one["accuracy"]] == [p["value"] for p in other["accuracy"]]


def test_unlearn_prepares_the_report_for_the_reference(world, tmp_path):
    command = ["unlearn", "--model", world / "model", "--reference", world / "twin", "--train", world / "retain.csv",
               "--forget_indices", 0, 3, 5, "--test", world / "test.csv", "--learning_rate", 0, "--output_dir",
               tmp_path / "out", *FAST]  # fmt: skip
    assert run(*command) == 0
    assert values_of(tmp_path / "out" / "unlearning_report")["tug_of_war"] == 1, "no step moved the model"


@pytest.mark.parametrize(
    ("other", "words"),
    [("strange", "['cat', 'dog', 'fox'], the model has 3 classes ['eel', 'cat', 'dog']"), ("two", "['cat', 'dog']")],
)
def test_other_classes_are_refused_with_both_lists(world, tmp_path, other, words, capsys):
    for command in (
        ["evaluate", "--forget", world / "forget.csv", "--device", "cpu", "--output-dir", tmp_path / "e"],
        ["unlearn", "--train", world / "retain.csv", "--forget_indices", 0, "--output_dir", tmp_path / "u", *FAST],
    ):
        assert run(*command, "--model", world / "model", "--reference", world / other) == 1
        assert words in capsys.readouterr().err
    assert not (tmp_path / "e").exists() and not (tmp_path / "u" / "model.safetensors").exists()
    command = ["landscape", "--models", world / "model", world / other, "--forget", world / "forget.csv"]
    assert run(*command, "--output-dir", tmp_path / "l") == 1
    assert words in capsys.readouterr().err


def test_a_model_without_names_beside_one_with_names_is_refused_where_it_matters(world, tmp_path, capsys):
    """The pictures' classes are declared in an order that is not the named model's: which one the other follows?"""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=sorted(NAMES))})
    datasets.Dataset.from_dict({"text": texts(6), "label": [0, 1, 2, 0, 1, 2]}, features).to_parquet(
        tmp_path / "d.parquet"
    )
    for pair in (("model", "unnamed"), ("unnamed", "model")):
        assert run("evaluate", "--model", world / pair[0], "--reference", world / pair[1], "--forget",
                   tmp_path / "d.parquet", "--device", "cpu", "--output-dir", tmp_path / "out") == 1  # fmt: skip
        assert "how the first one numbers them cannot be told" in capsys.readouterr().err


def test_a_landscape_of_twins_is_the_same(world, tmp_path):
    command = ["landscape", "--models", world / "model", world / "twin", "--forget", world / "forget.csv", "--points",
               3, "--output-dir", tmp_path / "out", "--device", "cpu"]  # fmt: skip
    assert run(*command) == 0
    found = json.loads((tmp_path / "out" / "landscape.json").read_text())
    assert found["model"]["forget"]["centre"] == pytest.approx(found["twin"]["forget"]["centre"], abs=1e-5)


def test_pictures_are_prepared_by_each_model_s_processor(tmp_path):
    """The reference reads pictures of another size: with those of the model it answers something else."""
    for name, size in (("model", 8), ("reference", 16)):
        torch.manual_seed(0)
        config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=2)
        model = ResNetForImageClassification(config)
        model.save_pretrained(tmp_path / name)
        ViTImageProcessor(size={"height": size, "width": size}).save_pretrained(tmp_path / name)
    draw = np.random.default_rng(0)
    for label in ("0", "1"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for i in range(4):
            picture = Image.fromarray(draw.integers(256, size=(20, 20, 3), dtype=np.uint8))
            picture.save(tmp_path / "pictures" / label / f"{i}.png")
    losses = {}
    for model, reference in (("model", "reference"), ("reference", "reference")):
        out = tmp_path / f"out-{model}"
        assert run("evaluate", "--model", tmp_path / model, "--reference", tmp_path / reference, "--forget",
                   tmp_path / "pictures", "--device", "cpu", "--svc-samples", 0, "--output-dir", out) == 0  # fmt: skip
        losses[model] = json.loads((out / "report.json").read_text())["metrics"]["loss/forget"]["retrained"]["value"]
    assert losses["model"] == pytest.approx(losses["reference"]), "its own pictures, whatever it is compared with"
