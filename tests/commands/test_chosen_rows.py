"""`sharp-unlearn unlearn` says what it will forget; rows that cannot be used are left out if asked; a dry run writes
nothing."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from optional_packages import datasets
from PIL import Image
from transformers import AutoModelForImageClassification, ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from hf_sharp_unlearn import check_commitment
from hf_sharp_unlearn.commands import cli
from hf_sharp_unlearn.data import bad_rows

FAST = ["--method", "neggrad", "--use_cpu", "--max_steps", "5", "--per_device_train_batch_size", "3", "--no_report"]
NAMES = {0: "elm", 1: "fir"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("chosen")
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", id2label=NAMES,
                          label2id={name: i for i, name in NAMES.items()})  # fmt: skip
    ResNetForImageClassification(config).save_pretrained(root / "model")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(root / "model")
    draw = np.random.default_rng(0)
    for name in NAMES.values():
        (root / "trees" / name).mkdir(parents=True)
        for i in range(6):
            picture = Image.fromarray(draw.integers(256, size=(10, 10, 3), dtype=np.uint8))
            picture.save(root / "trees" / name / f"{i}.png")
    return root


def run(world, out, *arguments, train=None):
    train = world / "trees" if train is None else train
    words = ["--model", world / "model", "--train", train, "--output_dir", out, *FAST, *arguments]
    return cli.main(["unlearn", *map(str, words)])


def test_the_choice_is_said_before_the_work(world, tmp_path, capsys):
    assert run(world, tmp_path / "out", "--forget_filter", "label == fir") == 0
    line = "forget set: 6 of 12 rows of " + str(world / "trees") + ", numbers 6, 7, 8, 9, 10, ... (counted from 0)"
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == line


@pytest.mark.parametrize("images", ["memory", "process"])
def test_bad_rows_are_left_out_and_listed_but_never_forgotten(world, tmp_path, capsys, images):
    trees = tmp_path / "trees"
    shutil.copytree(world / "trees", trees)
    (trees / "elm" / "3.png").write_bytes(b"broken")
    options = ["--images", images]
    assert run(world, tmp_path / "a", "--forget_indices", 1, 7, *options, train=trees) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "3.png', in row 3: cannot identify image file" in error and "--skip_bad" in error

    assert run(world, tmp_path / "b", "--forget_indices", 1, 7, *options, "--skip_bad", train=trees) == 0
    shown = capsys.readouterr().out
    assert f"left out of {trees}: 1 rows, e.g. row 3: Picture" in shown and "forget           2" in shown
    assert "retain           9" in shown
    assert "forget set: 2 of 12 rows" in shown
    with open(tmp_path / "b" / "_skipped_rows.json") as file:
        assert list(json.load(file)["train"]) == ["3"]
    assert check_commitment([1, 7], tmp_path / "b"), "rows are numbered as in the user's table"

    assert run(world, tmp_path / "c", "--forget_indices", 3, 7, *options, "--skip_bad", train=trees) == 1
    assert "row 3: Picture" in (error := capsys.readouterr().err) and "It is to be forgotten (1 such rows)" in error
    assert not (tmp_path / "c").exists()


def test_rows_without_text_or_label_are_bad(world):
    table = datasets.Dataset.from_dict({"text": ["a", None, "", "b"], "label": [0, 1, None, None]})
    model = str(world / "model")
    assert bad_rows(table, model) == {1: "no text (text)", 2: "no text (text)", 3: "no label (label)"}
    assert bad_rows(table.remove_columns("text"), model) == {2: "no label (label)", 3: "no label (label)"}


def test_a_dry_run_says_all_and_writes_nothing(world, tmp_path, capsys):
    out = tmp_path / "out"
    before = {path: os.stat(path).st_mtime for path in world.rglob("*")}
    arguments = ["--forget_filter", "label == fir", "--test", world / "trees", "--dry_run"]
    assert run(world, out, *arguments, "--num_train_epochs", 3, "--max_steps", -1) == 0
    shown = capsys.readouterr().out
    for words in ("forget set: 6 of 12 rows", "ResNetForImageClassification, ", "6 samples of 1 class(es) (1: 6)",
                  "12 samples of 2 class(es) (0: 6, 1: 6)", "pixel_values (3, 8, 8), labels ()", "NegGradPlus(",
                  "steps     6 in 3 epoch(s)", "s for the steps", f"dry run: nothing was written to {out}",
                  "retain    6 samples of 1 class(es) (0: 6)"):  # fmt: skip
        assert words in shown, (words, shown)
    assert not out.exists() and {path: os.stat(path).st_mtime for path in world.rglob("*")} == before
    AutoModelForImageClassification.from_pretrained(world / "model")
    assert run(world, out, "--forget_filter", "label == ash", "--dry_run") == 1, "a wrong choice is found by it too"
    assert not out.exists()
