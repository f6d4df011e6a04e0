"""The folder that a command writes: tried before any work, locked, free again; caches elsewhere, gone in the end."""

import errno
import json
import os
import platform
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from optional_packages import datasets
from parts import timm_resnet
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast, Trainer

from hf_sharp_unlearn.commands import cli, folders
from hf_sharp_unlearn.runtime import disk_is_full, full_disk_named

FAST = ["--use_cpu", "--per_device_train_batch_size", "4", "--method", "neggrad", "--no_report"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A text classifier with its tokenizer, and its data as a file and as a saved data set."""
    root = tmp_path_factory.mktemp("folders [1] x")
    words = {word: i for i, word in enumerate("[PAD] [UNK] warm cold soup tea".split())}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        root / "m"
    )
    torch.manual_seed(0)
    config = BertConfig(vocab_size=6, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
                        max_position_embeddings=16, num_labels=2)  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(root / "m")
    rows = {"text": ["warm soup", "cold tea"] * 6, "label": [1, 0] * 6}
    data = datasets.Dataset.from_dict(rows)
    data.to_csv(root / "t.csv")
    data.save_to_disk(root / "saved")
    timm_resnet().save_pretrained(root / "timm")
    features = datasets.Features(
        {"pixel_values": datasets.Array3D((1, 8, 8), "float32"), "label": datasets.Value("int64")}
    )
    pixels = list(np.random.default_rng(0).normal(size=(12, 1, 8, 8)).astype("float32"))
    datasets.Dataset.from_dict({"pixel_values": pixels, "label": [0, 1, 2] * 4}, features).to_parquet(
        root / "p.parquet"
    )
    return root


def run(*arguments):
    return cli.main(list(map(str, arguments)))


def unlearn(world, out, *more, data="t.csv"):
    chosen = ["--train", world / data, "--forget_indices", 0, 1]
    return run("unlearn", "--model", world / "m", *chosen, "--output_dir", out, *FAST, *more)


def commands(world):
    """A call of each command that writes a folder, without the folder."""
    arrays = world / "p.parquet"
    return {
        "unlearn": ["--model", world / "m", "--train", world / "t.csv", "--forget_indices", 0, 1, *FAST],
        "evaluate": ["--model", world / "timm", "--forget", arrays, "--retain", arrays],
        "landscape": ["--models", world / "timm", "--forget", arrays],
        "memorize": ["--train", arrays, "--model", world / "timm", "--models", 2, "--epochs", 1],
        "demo": [],
        "benchmark": [],
    }


HOLD = """
import os, sys, time
from hf_sharp_unlearn.commands import folders
folders.claim(sys.argv[1])
if os.fork() == 0:  # a loader's worker, say: it must not hold the lock when its parent is gone
    time.sleep(60)
    os._exit(0)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that works in tmp_path/out."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True,
                          start_new_session=True) as process:  # fmt: skip
        assert process.stdout.readline() == "held\n"
        yield process
        os.killpg(process.pid, signal.SIGKILL)


def test_a_folder_in_use_is_refused_and_that_of_a_dead_process_taken_over(world, tmp_path, holder, capsys):
    out = tmp_path / "out"
    for name, options in commands(world).items():
        assert run(name, *options, "--output_dir" if name != "benchmark" else "--output-dir", out) == 1
        said = capsys.readouterr().err
        assert f"{out} is in use: process {holder.pid} on {platform.node()}" in said and "another folder" in said, name
    assert os.listdir(out) == ["_lock"], "nothing was begun"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert unlearn(world, out, "--max_steps", 1) == 0
    assert f"taking over {out}: process {holder.pid} on" in capsys.readouterr().out
    assert (out / "model.safetensors").exists() and not (out / "_lock").exists()


def test_a_folder_in_use_is_not_pushed(tmp_path, holder, capsys):
    (tmp_path / "out" / "model.safetensors").write_bytes(b"half")
    assert run("push", tmp_path / "out", "--repo", "me/model") == 1
    assert f"--folder {tmp_path / 'out'} is in use: process {holder.pid}" in capsys.readouterr().err


def test_without_locks_of_the_kernel_the_process_is_looked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(folders, "fcntl", None)
    lock = tmp_path / "_lock"
    for who, refused in (({"pid": os.getppid(), "host": platform.node()}, True), ({"pid": 5, "host": "far"}, True),
                         ({"pid": 2**22 + 1, "host": platform.node()}, False)):  # fmt: skip
        lock.write_text(json.dumps(who))
        if refused:
            with pytest.raises(ValueError, match=f"process {who['pid']} on {who['host']}.*remove .*_lock"):
                folders.claim(str(tmp_path))
        else:
            with folders.letting_go():
                folders.claim(str(tmp_path))
            assert "taking over" in capsys.readouterr().out and not lock.exists()


def test_processes_of_one_launch_share_the_lock_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with folders.letting_go():
        folders.claim(str(tmp_path / "out"))
        assert not (tmp_path / "out").exists(), "the first one makes it"


@pytest.mark.parametrize("name", ["unlearn", "evaluate", "landscape", "memorize", "demo", "benchmark"])
def test_a_folder_that_cannot_be_written_is_found_before_any_work(world, tmp_path, name, monkeypatch, capsys):
    def work(*args, **kwargs):
        raise AssertionError("work was begun")

    for place in ("data.sources.load_model", "data.tables.read_table", "commands.evaluate.evaluate_unlearning"):
        monkeypatch.setattr(f"hf_sharp_unlearn.{place}", work)
    file = tmp_path / "file"
    file.write_text("")
    option = "--output-dir" if name == "benchmark" else "--output_dir"
    for folder in (file, file / "below"):
        assert run(name, *commands(world)[name], option, folder) == 1
        assert f"{option} {folder}: it, or a part of its path, is a file" in capsys.readouterr().err
    plain, new = folders.open if hasattr(folders, "open") else open, tmp_path / "new" / "deep"
    for code, words in ((errno.EROFS, "read-only"), (errno.EACCES, "may not write"), (errno.ENOSPC, "bytes free")):

        def refusing(path, *args, _code=code, **kwargs):
            if "_trial" in str(path):
                raise OSError(_code, os.strerror(_code), path)
            return plain(path, *args, **kwargs)

        monkeypatch.setattr(folders, "open", refusing, raising=False)
        assert run(name, *commands(world)[name], option, new) == 1
        said = capsys.readouterr().err
        assert f"{option} {new}: " in said and words in said
        assert not (tmp_path / "new").exists(), "what was made is taken away"


def test_a_full_disk_is_named_and_leaves_nothing_half_written(world, tmp_path, monkeypatch, capsys):
    out, options = tmp_path / "out", ["--max_steps", 4, "--save_strategy", "steps", "--save_steps", 2]
    plain = Trainer._save_optimizer_and_scheduler

    def full(trainer, folder):
        if trainer.state.global_step < 4:
            return plain(trainer, folder)
        with open(os.path.join(folder, "optimizer.pt"), "wb") as file:
            file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_save_optimizer_and_scheduler", full)
        assert unlearn(world, out, *options) == 1
    said = capsys.readouterr().err
    assert f"the disk of {out} has" in said and "bytes free" in said and f"{out}/checkpoint-4" in said
    assert sorted(os.listdir(out)) == ["_options.json", "checkpoint-2"]
    assert unlearn(world, out, *options) == 0
    assert "going on from" in capsys.readouterr().out


@pytest.mark.parametrize("error", [OSError(errno.EDQUOT, "x"), RuntimeError("I/O error: No space left (os error 28)")])
def test_full_disks_are_told_whichever_library_writes(tmp_path, error):
    with (
        pytest.raises(OSError, match=f"disk of {tmp_path} has [0-9,]+ bytes free") as raised,
        full_disk_named(str(tmp_path)),
    ):
        try:
            raise error
        except type(error) as cause:
            raise KeyError("wrapped") from cause
    assert raised.value.errno == errno.ENOSPC
    assert not disk_is_full(OSError(errno.ENOENT, "x"), str(tmp_path))


def test_copies_of_the_data_lie_in_the_cache_folder_and_are_gone_in_the_end(world, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
    before = {path: path.stat().st_mtime_ns for path in (world / "saved").rglob("*")}
    seen, plain = [], Trainer.train

    def train(trainer, *args, **kwargs):
        seen.extend(path for path in cache.rglob("*.arrow"))
        return plain(trainer, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train", train)
    for data in ("saved", "t.csv"):
        assert unlearn(world, tmp_path / f"out {data}", "--max_steps", 1, data=data) == 0
    assert {path: path.stat().st_mtime_ns for path in (world / "saved").rglob("*")} == before
    assert seen and not list(cache.rglob("*.arrow")), "forget rows were cached, and are no longer there"


def test_a_report_that_was_cut_off_does_not_count_as_finished(world, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["evaluate", *commands(world)["evaluate"], "--output_dir", out, "--device", "cpu", "--svc-samples", 0]
    out.mkdir()
    (out / "report.json").write_text('{"metrics": {"accur')
    assert run(*command) == 0
    assert run(*command) == 1
    assert "report.json is there already" in capsys.readouterr().err
