"""Pushes to a Hub on loopback and back. What a client does runs in a process of its own: see hub_job.py."""

import json
import os
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard
from parts import SUPPORT


def job(hub, name, folder):
    command = [sys.executable, str(SUPPORT / "hub_job.py"), name, str(folder)]
    done = subprocess.run(command, env=hub[0], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_what_is_pushed_reads_back_bitwise_equal(hub, tmp_path):
    found = job(hub, "round_trip", tmp_path)
    assert found["timm"] and found["resnet"] and found["lora"]
    assert found["through timm"], "the same repository loads with timm alone"
    assert found["processor"] == "TimmWrapperImageProcessor" and found["size"] == 8
    assert found["private"] is True
    assert found["tags"][:2] == [["mine"], ["timm"]], "neither the caller's list nor the model class's got other tags"
    metadata = {name: ModelCard.load(tmp_path / name / "README.md").data for name in ("timm", "second", "lora")}
    assert metadata["timm"].base_model is None and metadata["timm"].license == "mit"
    assert metadata["timm"].datasets == ["me/digits"] and metadata["timm"].language == "en"
    assert {"mine", "timm", "sharp-minmax", "machine-unlearning"} <= set(metadata["timm"].tags)
    results = {(r.metric_type, r.dataset_split): r.metric_value for r in metadata["timm"].eval_results}
    assert set(results) == {("accuracy", split) for split in ("forget", "retain", "test")} | {
        ("tug_of_war", None), ("mia_loss", None)}  # fmt: skip
    assert metadata["second"].base_model == "me/timm-model", "it was loaded from there"
    assert metadata["lora"].base_model == "me/base" and metadata["lora"].library_name == "peft"


def test_every_strategy_pushes_the_model_its_card_and_nothing_else_unasked(hub, tmp_path):
    found = job(hub, "strategies", tmp_path)
    shared = {"README.md", "config.json", "model.safetensors", "training_args.bin"}
    assert found["end"]["trained"] == [] and set(found["every_save"]["trained"]) == shared
    for strategy in ("end", "every_save"):
        assert set(found[strategy]["saved"]) == shared
    assert not found["end"]["warned"] and "have not forgotten yet" in found["every_save"]["warned"][0]
    for strategy, folders in (
        ("checkpoint", {"last-checkpoint"}),
        ("all_checkpoints", {"checkpoint-1", "checkpoint-2"}),
    ):
        files = found[strategy]["trained"]
        assert shared <= set(files) and {name.split("/")[0] for name in files if "/" in name} == folders
        assert any(name.endswith("optimizer.pt") for name in files), "that is what was asked for"
        assert found[strategy]["warned"] and "forget set" in found[strategy]["warned"][0]
    for name, strategy in found.items():
        arguments = strategy["arguments"]
        assert strategy["searched"] == [], "no file of any commit has a path or a token"
        local, shared = strategy["best"]
        assert local, "the run's own state has the path, for a resume"
        assert set(shared) <= {"checkpoint-1", "checkpoint-2"} and bool(shared) == ("checkpoint" in name)
        assert arguments["leaks"] == [] and arguments["class"] == "UnlearningArguments" and arguments["steps"] == 2
        assert os.sep not in arguments["output_dir"] and arguments["own"], "the run keeps its own"


def test_faults_say_what_to_do_keep_the_model_and_a_second_try_completes(hub, tmp_path):
    found = job(hub, "faults", tmp_path)
    for name, words in (
        ("401", "does not accept the token"),
        ("403", "may not write there"),
        ("409", "changed at the same time"),
        ("503", "answered 503"),
        ("cut", "the connection to"),
    ):
        assert words in found[name]["said"] and "The model is whole in" in found[name]["said"], name
        assert found[name]["local"] and found[name]["second"], name
    assert "does not accept the token" in found["early"], "before any training"
    steps, said = found["background"]
    assert steps == 2 and "A push during training failed. me/background: the token may not write there" in said


def test_push_replaces_the_history_only_when_told_to(hub, tmp_path):
    found = job(hub, "replace", tmp_path)
    assert found["plain"] == 0 and found["kept"] == [3, 3], "a push over the original keeps it in the history"
    assert {"pytorch_model.bin", "README.md", "config.json", "model.safetensors"} <= set(found["files"])
    assert found["explained"] == 1 and found["untouched"], "--replace alone explains and does nothing"
    assert found["tagged"] == [1, 3], "what a tag holds is not taken from it, and that is said"
    assert found["interrupted"] == 1 and found["done"] == [0, 0] and found["equal"] and found["commits"] == 1
    assert set(found["left"]) == {"README.md", "config.json", "model.safetensors", "training_args.bin"}
    assert found["with state"] == 0 and found["warned"] and "checkpoint-2/optimizer.pt" in found["state files"]
    assert found["branch"] == [0, ["dev", "main"]] and found["nothing"] == 1
    assert found["without owner"][0] == 0 and "model.safetensors" in found["without owner"][1]


def test_no_file_on_the_hub_has_a_path_a_token_or_traces_of_the_forget_set(hub, tmp_path):
    found = job(hub, "leaks", tmp_path)
    assert found["found"] == []
    plots = {f"unlearning_report/{name}.png" for name in ("accuracy", "roc", "confidence", "features")}
    assert set(found["files"]) == plots | {
        "README.md", "config.json", "model.safetensors", "training_args.bin", "notes.txt",
        "unlearning_report/report.json", "unlearning_report/report.md",
    }  # fmt: skip
    assert not found["card"] and not found["checkpoint card"], "peft's own card names the base model's folder"
    assert "is a folder of this machine" in found["push"] and "is a folder of this machine" in found["before"]
    assert found["pushed"] is None
    assert "may not write there" in found["later"] and "may not write there" in found["future"]
    assert found["branch"] and found["refs"] == ["dev", "main"]


@pytest.mark.skipif(not os.environ.get("HUB_TEST_TOKEN"), reason="HUB_TEST_TOKEN is not set: the real Hub is not used")
def test_the_real_hub(tmp_path):
    """Makes a private repository, reads the model back and deletes the repository."""
    code = (
        "import sys, uuid\n"
        "from huggingface_hub import HfApi\n"
        "from transformers import AutoModelForImageClassification\n"
        "from hub_job import equal, trainer\n"
        "api = HfApi()\n"
        "repo = f'{api.whoami()[\"name\"]}/hf-sharp-unlearn-test-{uuid.uuid4().hex[:8]}'\n"
        "run = trainer(sys.argv[1], hub_model_id=repo, hub_private_repo=True)\n"
        "run.train()\n"
        "try:\n"
        "    run.push_to_hub()\n"
        "    assert equal(run.model, AutoModelForImageClassification.from_pretrained(repo))\n"
        "finally:\n"
        "    api.delete_repo(repo)\n"
    )
    environment = {
        **os.environ, "HF_TOKEN": os.environ["HUB_TEST_TOKEN"], "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(SUPPORT),
        "HF_ENDPOINT": os.environ.get("HF_ENDPOINT", "https://huggingface.co"), "HF_HOME": str(tmp_path / "home"),
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], env=environment, capture_output=True,
                          text=True, timeout=600)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
