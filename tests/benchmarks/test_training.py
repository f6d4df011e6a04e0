"""The benchmark of whole training steps, on tiny models."""

import csv

import pytest

from hf_sharp_unlearn.benchmarks import training
from hf_sharp_unlearn.benchmarks.parts.trainers import METHODS
from hf_sharp_unlearn.commands.cli import main


@pytest.mark.parametrize("model", ["resnet10t", "llama-small"])
def test_the_command_times_training_steps(tmp_path, monkeypatch, model):
    monkeypatch.setattr(training, "LLAMA", training.LLAMA | {"hidden_size": 32, "intermediate_size": 64})
    assert main(["benchmark", "--part", "training", "--models", model, "--rounds", "1", "--steps", "1", "--batch", "2",
                 "--size", "32", "--output-dir", str(tmp_path)]) == 0  # fmt: skip
    with open(tmp_path / "training.csv") as file:
        found = list(csv.DictReader(file))
    assert [row["ratio"] for row in found] == [f"{above} / {below}" for above, below in training.RATIOS]
    assert all(float(row["ratio_50"]) > 0 for row in found)


def test_every_variant_of_a_ratio_is_a_trainer_or_a_method():
    variants = {name for pair in training.RATIOS for name in pair}
    assert variants <= {"trainer", "trainer_2", *METHODS}
