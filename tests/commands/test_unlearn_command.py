"""`sharp-unlearn unlearn`: files in, an unlearned model with card and report out; options, reruns, processes."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import peft
import pytest
import torch
from huggingface_hub import ModelCard
from optional_packages import datasets
from parts import assert_same_updates, timm_resnet, weights_of
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForImageClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessor,
)

from hf_sharp_unlearn import UnlearningReport, check_commitment
from hf_sharp_unlearn.commands import cli

FAST = ["--use_cpu", "--max_steps", "2", "--per_device_train_batch_size", "8", "--svc-samples", "0"]
NAMES = {0: "cat", 1: "dog", 2: "eel"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A timm model on arrays, a ResNet with its processor on pictures, a language model on text."""
    root = tmp_path_factory.mktemp("unlearn")
    timm_resnet().save_pretrained(root / "timm")
    timm_resnet(seed=1).save_pretrained(root / "retrained")
    draw = np.random.default_rng(0)
    arrays = datasets.Features(
        {"pixel_values": datasets.Array3D((1, 8, 8), "float32"), "label": datasets.Value("int64"),
         "wrong": datasets.Value("bool")}
    )  # fmt: skip
    for split, count in (("train", 42), ("test", 16)):
        pixels = list(draw.normal(size=(count, 1, 8, 8)).astype("float32"))
        columns = {"pixel_values": pixels, "label": draw.integers(3, size=count), "wrong": np.arange(count) % 6 == 0}
        datasets.Dataset.from_dict(columns, arrays).to_parquet(root / f"{split}.parquet")
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", id2label=NAMES,
                          label2id={name: i for i, name in NAMES.items()})  # fmt: skip
    torch.manual_seed(0)
    ResNetForImageClassification(config).save_pretrained(root / "resnet")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(root / "resnet")
    for name in NAMES.values():
        (root / "pictures" / name).mkdir(parents=True)
        for i in range(8):
            picture = Image.fromarray(draw.integers(256, size=(10, 10, 3), dtype=np.uint8))
            picture.save(root / "pictures" / name / f"{i}.png")
    words = ["[PAD]", "[EOS]", "[UNK]", *"a quick brown fox jumps over the lazy dog".split()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    settings = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(root / "llama")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[EOS]").save_pretrained(
        root / "llama"
    )
    base = LlamaForCausalLM.from_pretrained(root / "llama")
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    peft.get_peft_model(base, lora).save_pretrained(root / "lora")
    lines = [{"text": " ".join(draw.choice(words[3:], size=5)), "author": i % 4} for i in range(20)]
    (root / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def run(*arguments):
    return cli.main(["unlearn", *map(str, arguments)])


def base(world, out):
    return ["--model", world / "timm", "--train", world / "train.parquet", "--output_dir", out, *FAST]


def test_a_marked_column_is_forgotten_and_the_folder_is_complete(world, tmp_path, capsys):
    out = tmp_path / "out"
    command = [*base(world, out), "--forget_column", "wrong", "--test", world / "test.parquet", "--reference",
               world / "retrained", "--relearn-steps", 2, "--relearn-samples", 2, "--retrain_seconds", 99]  # fmt: skip
    assert run(*command) == 0
    shown = capsys.readouterr().out
    assert "forget           7" in shown and "retain          35" in shown and "Tug-of-War: " in shown
    files = set(os.listdir(out))
    assert {"README.md", "config.json", "model.safetensors", "all_results.json", "unlearning_report"} <= files
    card = (out / "README.md").read_text()
    assert "| forget set | 7 samples |" in card and "rows marked in a column, wrong" in card
    assert "Beside a model retrained" in card and "99.0 s, as stated" in card
    assert check_commitment([0, 6, 12, 18, 24, 30, 36], out)
    report = UnlearningReport.load(str(out / "unlearning_report" / "report.json"))
    assert set(report.metrics["accuracy/forget"]) == {"unlearned", "retrained", "original"} and report.relearning
    changed = AutoModelForImageClassification.from_pretrained(out).state_dict()
    before = AutoModelForImageClassification.from_pretrained(world / "timm").state_dict()
    assert any(not torch.equal(changed[name], before[name]) for name in before)
    with open(out / "all_results.json") as file:
        assert json.load(file)["eval_forget_samples"] == 7

    # A finished command is not repeated unasked; with --overwrite it is, to the same result.
    stamp = (out / "model.safetensors").read_bytes()
    assert run(*command) == 1
    assert "all_results.json is there already: pass --overwrite" in capsys.readouterr().err
    assert run(*command, "--overwrite", "--no_report") == 0
    assert (out / "model.safetensors").read_bytes() == stamp
    assert not (out / "unlearning_report").exists(), "a report of the run before is not pushed with this one"


def test_a_class_of_pictures_is_forgotten_whatever_becomes_of_them(world, tmp_path):
    command = ["--model", world / "resnet", "--train", world / "pictures", "--forget_filter", "label == dog",
               "--method", "neggrad", "--sharpness", "sam", "--rho", 0.05, "--no_report", *FAST]  # fmt: skip
    weights = {}
    for images in ("memory", "disk", "process"):
        out = tmp_path / images
        assert run(*command, "--images", images, "--output_dir", out) == 0
        weights[images] = (out / "model.safetensors").read_bytes()
        assert "| `sharpness` | `SAM(rho=0.05)` |" in (out / "README.md").read_text()
        assert "dog" not in ModelCard.load(out / "README.md").text, "what was looked for is not published"
        assert (out / "preprocessor_config.json").exists()
    assert weights["memory"] == weights["disk"]
    a, b = (AutoModelForImageClassification.from_pretrained(tmp_path / name) for name in ("memory", "process"))
    start = weights_of(AutoModelForImageClassification.from_pretrained(world / "resnet"))
    assert_same_updates(weights_of(b), weights_of(a), start, 1e-3)  # pixels are rounded to floats in another order
    assert run(*command, "--augmentation", "crop-flip", "--output_dir", tmp_path / "augmented") == 0
    assert (tmp_path / "augmented" / "model.safetensors").read_bytes() != weights["memory"]


@pytest.mark.parametrize("model", ["llama", "lora"])
def test_lines_of_text_are_forgotten_by_number(world, tmp_path, model):
    out = tmp_path / "out"
    assert run("--model", world / model, "--train", world / "text.jsonl", "--forget_indices", 1, 5, 6, "--method",
               "neggrad", "--output_dir", out, *FAST) == 0  # fmt: skip
    assert (out / ("adapter_model.safetensors" if model == "lora" else "model.safetensors")).exists()
    assert (out / "tokenizer.json").exists() and check_commitment([6, 5, 1], out)
    assert ModelCard.load(out / "README.md").data.pipeline_tag == "text-generation"


def test_sets_of_their_own(world, tmp_path):
    out = tmp_path / "out"
    assert run("--model", world / "timm", "--forget", world / "test.parquet", "--retain", world / "train.parquet",
               "--output_dir", out, "--no_report", *FAST) == 0  # fmt: skip
    card = (out / "README.md").read_text()
    assert "| forget set | 16 samples |" in card and "none: the row numbers are not known" in card


def test_a_file_gives_options_and_flags_win(world, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(
        f"model: {world / 'timm'}\ntrain: {world / 'train.parquet'}\nforget-indices: [1, 2]\nmethod: salun\n"
        f"fraction: 0.25\nmax_steps: 1\nuse_cpu: true\nreport: false\noverwrite: true\noutput_dir: {tmp_path / 'a'}\n"
        "lr_scheduler_kwargs: {}\ntest: null\neval_strategy: no\nsave_strategy: no\nrun_name: -x\nlabel_names: []\n"
        "learning_rate: 1e-3\n"
    )
    assert run("--config", path, "--fraction", 0.75) == 0
    card = (tmp_path / "a" / "README.md").read_text()
    assert "| `fraction` | `0.75` |" in card and "`SalUn`" in card and "| `max_steps` | `1` |" in card
    assert "| `learning_rate` | `0.001` |" in card and not list((tmp_path / "a").glob("checkpoint-*"))
    for text, words in (("colour: red", "there is no option 'colour'"), ("- a", "must hold a mapping"),
                        ("a: [", "while parsing"), (None, "there is no such file")):  # fmt: skip
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        with pytest.raises(SystemExit) as raised:
            run("--config", path)
        assert raised.value.code == 2 and words in capsys.readouterr().err


def test_wrong_usage_exits_with_2_and_failures_with_1_in_one_line(world, tmp_path, capsys):
    out = tmp_path / "out"
    usage = [
        (["--forget_column", "wrong", "--fraction", 0.1, "--method", "neggrad"], "--fraction 0.1: neggrad has no such"),
        (["--forget_column", "wrong", "--rho", 1, "--method", "neggrad"], "--rho 1.0: there is no sharpness"),
        (["--forget_column", "wrong", "--eta", 1, "--sharpness", "sam"], "--eta 1.0: SAM has only rho"),
        (["--forget", world / "test.parquet"], "Give --train with one of"),
    ]
    failures = [
        ([], "named by nothing"),
        (["--forget_column", "colour"], "'colour' is no column"),
        (["--forget_column", "wrong", "--alpha", 7], "SharpMinMax(alpha=7.0): must be a number in [0, 1]"),
        (["--forget_column", "wrong", "--model", tmp_path], "No model could be loaded from"),
        (["--forget_column", "wrong", "--augmentation", "flip"], "holds arrays, not pictures"),
        (["--forget_column", "wrong", "--output_dir", world], "would be lost: name another one"),
        (["--forget_column", "wrong", "--output_dir", ""], "--output_dir is empty"),
    ]
    for code, cases in ((2, usage), (1, failures)):
        for arguments, words in cases:
            assert run(*base(world, out), *arguments) == (2 if "is empty" in words else code), words
            err = capsys.readouterr().err
            lines = [line for line in err.splitlines() if line.startswith("sharp-unlearn:")]
            assert len(lines) == 1 and words in lines[0] and "Traceback" not in err, err
    with pytest.raises(SystemExit) as raised:
        run(*base(world, out), "--forget_colum", "wrong")
    assert raised.value.code == 2
    assert not out.exists(), "nothing was begun"
    with pytest.raises(ValueError, match="colour"):
        run(*base(world, out), "--forget_column", "colour", "--debug")


def test_a_killed_run_goes_on_where_it_was(world, tmp_path, capsys):
    """Killed after a checkpoint, run again with the same options: the same weights as without a kill."""
    options = [*base(world, tmp_path / "killed"), "--forget_column", "wrong", "--no_report", "--save_strategy", "steps",
               "--save_steps", 2, "--max_steps", 60]  # fmt: skip
    command = [sys.executable, "-m", "hf_sharp_unlearn", "unlearn", *map(str, options)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}  # another number sums in another order
    with subprocess.Popen(command, env=threads, **quiet) as process:
        deadline = time.time() + 120
        while not list((tmp_path / "killed").glob("checkpoint-*/trainer_state.json")):
            assert time.time() < deadline and process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "killed" / "all_results.json").exists()
    torn = tmp_path / "killed" / "checkpoint-59"  # as if it had been killed while it wrote another one
    torn.mkdir()
    (torn / "model.safetensors").write_bytes(b"half")
    whole = [word if word != tmp_path / "killed" else tmp_path / "whole" for word in options]
    assert run(*whole) == 0
    for other in (["--learning_rate", 0.5], ["--weight_decay", 0.5], ["--alpha", 0.5]):
        assert run(*options, *other) == 1, "options of another run are not mixed in"
        assert "was made with other options" in capsys.readouterr().err
    assert run(*options, "--reference", world / "retrained", "--test", world / "test.parquet") == 0
    assert "going on from" in capsys.readouterr().out, "what is only measured may be another"
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("killed", "whole")]
    assert weights[0] == weights[1]
    assert "(since the last resume)" in (tmp_path / "killed" / "README.md").read_text()


def test_data_that_changed_is_not_gone_on_with(world, tmp_path, capsys):
    """The card would speak of rows that were never forgotten."""
    table = datasets.Dataset.from_parquet(str(world / "train.parquet"))
    table.to_parquet(data := tmp_path / "train.parquet")
    command = ["--model", world / "timm", "--train", data, "--output_dir", tmp_path / "out", "--forget_column", "wrong",
               "--no_report", *FAST]  # fmt: skip
    assert run(*command) == 0
    (tmp_path / "out" / "all_results.json").unlink()
    others = table.remove_columns("wrong").add_column("wrong", [i % 6 == 1 for i in range(len(table))])
    others.to_parquet(data)
    assert run(*command) == 1
    assert "was made with other options (data)" in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(world, tmp_path, capsys):
    """An original training's checkpoints are neither gone on with nor removed."""
    folder = tmp_path / "training"
    for name in ("checkpoint-2", "checkpoint-4"):
        (folder / name).mkdir(parents=True)
        (folder / name / "trainer_state.json").write_text("{}")
    for flags in ([], ["--overwrite"]):
        assert run(*base(world, folder), "--forget_column", "wrong", *flags) == 1
        assert "that this command has not made" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.parametrize("images", ["memory", "disk", "process"])
def test_labels_outside_the_classes_are_refused_before_the_run(world, tmp_path, images, capsys):
    table = datasets.Dataset.from_dict(
        {"image": [Image.new("RGB", (8, 8))] * 6, "label": [0, 1, 2, 3, 0, 1]},
        datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
    )
    table.to_parquet(tmp_path / "pictures.parquet")
    assert run("--model", world / "resnet", "--train", tmp_path / "pictures.parquet", "--forget_indices", 0, "--images",
               images, "--output_dir", tmp_path / "out", *FAST) == 1  # fmt: skip
    assert "labels outside the model's 3 classes, e.g. [3]" in capsys.readouterr().err


def test_empty_texts_and_missing_labels_are_named(world, tmp_path, capsys):
    (tmp_path / "text.jsonl").write_text('{"text": "a fox"}\n{"text": ""}\n{"text": "a dog"}\n')
    assert run("--model", world / "llama", "--train", tmp_path / "text.jsonl", "--forget_indices", 0, "--output_dir",
               tmp_path / "out", *FAST) == 1  # fmt: skip
    assert "1 rows have no text (text), e.g. [1]" in capsys.readouterr().err
    table = datasets.Dataset.from_dict(
        {"image": [Image.new("RGB", (8, 8))] * 3, "label": [0, -1, 2]},
        datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES.values()))}),
    )
    table.to_parquet(tmp_path / "unlabelled.parquet")
    assert run("--model", world / "resnet", "--train", tmp_path / "unlabelled.parquet", "--forget_indices", 0,
               "--output_dir", tmp_path / "out", *FAST) == 1  # fmt: skip
    assert "1 rows have no label (label), e.g. [1]" in capsys.readouterr().err


def test_narrow_weights_are_widened_for_training(world, tmp_path, capsys):
    LlamaForCausalLM.from_pretrained(world / "llama", dtype=torch.bfloat16).save_pretrained(tmp_path / "narrow")
    PreTrainedTokenizerFast.from_pretrained(world / "llama").save_pretrained(tmp_path / "narrow")
    command = ["--model", tmp_path / "narrow", "--train", world / "text.jsonl", "--forget_indices", 1, 5, "--no_report",
               *FAST]  # fmt: skip
    assert run(*command, "--output_dir", tmp_path / "wide") == 0
    assert LlamaForCausalLM.from_pretrained(tmp_path / "wide", dtype="auto").dtype == torch.float32
    assert run(*command, "--output_dir", tmp_path / "same", "--dtype", "auto") == 1
    assert "float32" in capsys.readouterr().err


def test_torchrun_and_accelerate_launch(world, tmp_path):
    options = ["--model", world / "timm", "--train", world / "train.parquet", "--forget_column", "wrong", *FAST]
    scripts = os.path.dirname(sys.executable)
    two = [f"{scripts}/torchrun", "--nproc_per_node", "2", "-m", "hf_sharp_unlearn", "unlearn", *options,
           "--ddp_backend", "gloo", "--per_device_train_batch_size", "4", "--output_dir", tmp_path / "two"]  # fmt: skip
    one = [f"{scripts}/accelerate", "launch", "--cpu", "-m", "hf_sharp_unlearn", "unlearn", *options, "--output_dir",
           tmp_path / "one"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "home")}
    for command in (two, one):
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("written:") == 1, "one process speaks"
    assert "| `processes` | `2` |" in (tmp_path / "two" / "README.md").read_text()
    a, b = (AutoModelForImageClassification.from_pretrained(tmp_path / name).state_dict() for name in ("one", "two"))
    statistics = ("running", "num_batches")  # a process's own batches; the mean differs from that of one batch
    for name in a:
        if not any(word in name for word in statistics):
            torch.testing.assert_close(a[name], b[name], atol=0.05, rtol=0.05)
    failing = [*map(str, two), "--forget_column", "colour", "--output_dir", str(tmp_path / "three")]
    done = subprocess.run(failing, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and done.stderr.count("'colour' is no column") == 1
