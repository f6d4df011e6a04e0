"""What an output folder may hold, and what of it is published."""

import pytest

from hf_sharp_unlearn.sharing import left_out, shareable_files
from hf_sharp_unlearn.sharing.publishable import is_model

GOES = ["README.md", "all_results.json", "config.json", "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "modeling_mine.py", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "training_args.bin",
        "unlearning_report/report.json", "unlearning_report/roc.png", "vocab.txt"]  # fmt: skip
STATE = ["checkpoint-3/model.safetensors", "checkpoint-3/optimizer.pt", "checkpoint-3/partition.safetensors",
         "checkpoint-3/rng_state.pth", "checkpoint-3/trainer_state.json", "partition.safetensors"]  # fmt: skip
NEVER = [".env", "_forget_commitment.json", "_options.json", "rewind/epoch-1.json", "rewind/epoch-1.safetensors",
         "runs/host/events.out.tfevents.1", "train.csv", "wrong_rows.npy", "forget.parquet", "id_rsa", "notes.txt",
         "checkpoint-3/rewind/epoch-1.safetensors", "checkpoint-3/forget.npy", "unlearning_report/rows.csv",
         "epoch-1.safetensors", "original/model.safetensors", "trainer_state.json",
         "unlearning_report/model.safetensors", "sub/deep/config.json"]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for name in (*GOES, *STATE, *NEVER):
        path = tmp_path / "run" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    return tmp_path / "run"


def test_model_card_and_report_go_and_nothing_that_is_not_named(folder):
    assert shareable_files(str(folder)) == sorted(GOES)
    assert shareable_files(str(folder), training_state=True) == sorted(GOES + STATE)
    assert shareable_files(f"{folder}/checkpoint-3/") == ["model.safetensors"]


def test_what_is_asked_for_goes_too_and_must_be_there(folder):
    assert shareable_files(str(folder), also=["notes.txt", "./train.csv"]) == sorted([*GOES, "notes.txt", "train.csv"])
    with pytest.raises(ValueError, match="also='note.txt': there is no such file"):
        shareable_files(str(folder), also=["note.txt"])


def test_what_somebody_may_miss_is_said(folder):
    missed = left_out(str(folder), also=["notes.txt"])
    assert {".env", "train.csv", "wrong_rows.npy", "original/model.safetensors"} <= set(missed)
    own = ("_", "rewind", "runs", "checkpoint")
    assert "notes.txt" not in missed and not [name for name in missed if name.startswith(own)]


def test_adapters_have_folders_of_their_own(tmp_path):
    for name in ("adapter_config.json", "other/adapter_model.safetensors", "other/adapter_config.json", "other/x.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert shareable_files(str(tmp_path)) == [
        "adapter_config.json", "other/adapter_config.json", "other/adapter_model.safetensors"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "model"),
    [("model.safetensors", True), ("pytorch_model-1.bin", True), ("adapter_model.safetensors", True),
     ("model.safetensors.index.json", False), ("training_args.bin", False), ("partition.safetensors", False),
     ("optimizer.bin", False), ("epoch-1.safetensors", False)],
)  # fmt: skip
def test_which_files_are_a_model(name, model):
    assert is_model(name) is model
