"""What an interrupted run goes on from: the last whole checkpoint of the same model, data and options, and no other."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from optional_packages import datasets
from parts import timm_resnet

from hf_sharp_unlearn.commands import cli

OPTIONS = ["--use_cpu", "--per_device_train_batch_size", "4", "--no_report", "--forget_indices", "0", "5",
           "--max_steps", "6", "--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "3", "--optim",
           "adamw_torch"]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("resuming")
    timm_resnet().save_pretrained(root / "model")
    draw = np.random.default_rng(0)
    columns = {
        "pixel_values": list(draw.normal(size=(20, 1, 8, 8)).astype("float32")),
        "label": draw.integers(3, size=20),
    }
    kinds = {"pixel_values": datasets.Array3D((1, 8, 8), "float32"), "label": datasets.Value("int64")}
    datasets.Dataset.from_dict(columns, datasets.Features(kinds)).to_parquet(root / "train.parquet")
    assert unlearn(root, root / "whole") == 0
    return root


def unlearn(world, out, *more, model="model"):
    return cli.main(["unlearn", "--model", str(world / model), "--train", str(world / "train.parquet"), "--output_dir",
                     str(out), *OPTIONS, *map(str, more)])  # fmt: skip


@pytest.fixture
def interrupted(world, tmp_path):
    """As after a kill behind the last checkpoint."""
    out = tmp_path / "out"
    shutil.copytree(world / "whole", out)
    (out / "all_results.json").unlink()
    (out / "model.safetensors").unlink()
    return out


def cut(path):
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) // 2)


DAMAGES = {
    "model.safetensors": (cut, "model.safetensors is cut off"),
    "optimizer.pt": (cut, "optimizer.pt is cut off"),
    "trainer_state.json": (cut, "trainer_state.json is cut off"),
    "partition.safetensors": (cut, "partition.safetensors is cut off"),
    "scheduler.pt": (os.remove, "it has no scheduler.pt"),
    "rng_state.pth": (os.remove, "it has no rng_state.pth"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_checkpoint_that_is_not_whole_gives_way_to_the_one_before(world, interrupted, name, capsys):
    damage, words = DAMAGES[name]
    damage(interrupted / "checkpoint-6" / name)
    assert unlearn(world, interrupted) == 0
    said = capsys.readouterr().out
    assert f"{interrupted}/checkpoint-6 is not whole ({words})" in said
    assert f"going on from {interrupted}/checkpoint-4" in said
    assert (interrupted / "model.safetensors").read_bytes() == (world / "whole" / "model.safetensors").read_bytes()


def test_with_no_whole_checkpoint_the_run_begins_anew_and_says_so(world, interrupted, capsys):
    for step in (2, 4, 6):
        os.remove(interrupted / f"checkpoint-{step}" / "partition.safetensors")
    assert unlearn(world, interrupted) == 0
    said = capsys.readouterr().out
    assert said.count("it has no partition.safetensors") == 3 and "the run begins anew" in said
    assert (interrupted / "model.safetensors").read_bytes() == (world / "whole" / "model.safetensors").read_bytes()


def test_other_folders_beside_checkpoints_are_the_users(world, interrupted, capsys):
    own = ["checkpoint-best", "checkpoint-", "checkpoint-6-old", "checkpoint-2b", "checkpoint-1e3"]
    for name in own:
        shutil.copytree(interrupted / "checkpoint-2", interrupted / name)
    assert unlearn(world, interrupted, "--save_total_limit", 1) == 0
    assert "going on from" in capsys.readouterr().out
    best = ["--overwrite", "--save_total_limit", 1, "--load_best_model_at_end", "--eval_strategy", "steps",
            "--eval_steps", 2, "--metric_for_best_model", "eval_retain_loss"]  # fmt: skip
    assert unlearn(world, interrupted, *best) == 0
    assert set(own) <= set(os.listdir(interrupted))
    assert sum(name.removeprefix("checkpoint-").isdigit() for name in os.listdir(interrupted)) == 1


def test_a_model_that_was_replaced_is_not_gone_on_with(world, interrupted, capsys):
    shutil.copytree(world / "model", world / "again")
    original = world / "again" / "model.safetensors"
    kept = original.read_bytes()
    command = [str(world / "again") if word == "model" else word for word in ["model"]]
    options = json.loads((interrupted / "_options.json").read_text()) | {"model": command[0]}
    (interrupted / "_options.json").write_text(json.dumps(options))
    timm_resnet(seed=7).save_pretrained(world / "again")
    try:
        assert unlearn(world, interrupted, model="again") == 1
        said = capsys.readouterr().err
        assert "the files of --model are others than they were" in said and "--overwrite to begin anew" in said
        original.write_bytes(kept)  # the same bytes at another time
        assert unlearn(world, interrupted, model="again") == 0
    finally:
        shutil.rmtree(world / "again")


def test_a_checkpoint_that_is_named_is_looked_at_like_one_that_is_found(world, interrupted, tmp_path, capsys):
    named = ["--resume_from_checkpoint", interrupted / "checkpoint-4"]
    assert unlearn(world, interrupted, *named, "--learning_rate", 0.5) == 1
    assert "made with other options (arguments)" in capsys.readouterr().err
    assert unlearn(world, tmp_path / "elsewhere", *named) == 0
    weights = [(folder / "model.safetensors").read_bytes() for folder in (tmp_path / "elsewhere", world / "whole")]
    assert weights[0] == weights[1]
    os.remove(interrupted / "checkpoint-4" / "scheduler.pt")
    assert unlearn(world, interrupted, *named) == 1
    assert "checkpoint-4 is not whole: it has no scheduler.pt" in capsys.readouterr().err
    alone = tmp_path / "alone" / "checkpoint-6"
    shutil.copytree(interrupted / "checkpoint-6", alone)
    assert unlearn(world, interrupted, "--resume_from_checkpoint", alone) == 1
    assert "there is no _options.json beside it" in capsys.readouterr().err
    assert unlearn(world, interrupted, "--resume_from_checkpoint", tmp_path / "nowhere") == 1
    assert "there is no such folder" in capsys.readouterr().err


def test_options_that_are_cut_off_are_named(world, interrupted, capsys):
    cut(interrupted / "_options.json")
    assert unlearn(world, interrupted) == 1
    assert "_options.json cannot be read" in capsys.readouterr().err
    assert unlearn(world, interrupted, "--overwrite") == 0


def test_weights_of_every_size_are_told_apart_and_times_do_not_count(tmp_path, monkeypatch):
    from safetensors.torch import save_file

    from hf_sharp_unlearn.data import model_files, model_fingerprint

    tensors = {"a": torch.arange(60_000.0), "b": torch.zeros(3), "c": torch.zeros(0)}
    path = tmp_path / "model.safetensors"
    for whole in (64 << 20, 100):  # all of it, then pieces
        monkeypatch.setattr(model_files, "_WHOLE", whole)
        save_file(tensors, path)
        first = model_fingerprint(str(tmp_path))
        os.utime(path, (1, 1))
        assert model_fingerprint(str(tmp_path)) == first
        for name, value in (("b", torch.ones(3)), ("a", tensors["a"] + 1), ("a", tensors["a"].view(2, -1))):
            save_file(tensors | {name: value}, path)
            assert model_fingerprint(str(tmp_path)) != first, (whole, name)
    (tmp_path / "config.json").write_text("{}")
    other = model_fingerprint(str(tmp_path))
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert model_fingerprint(str(tmp_path)) != other
    assert model_fingerprint("nobody/nothing") == model_fingerprint("nobody/else"), "loading it says what is missing"
