"""Labels and texts of files as commands meet them: served or refused by name; a report that fails loses nothing."""

import json

import pytest
from optional_packages import datasets
from text_models import classifier, texts, tokenizer_of, write_csv
from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification

from hf_sharp_unlearn.commands import cli, unlearn

FAST = ["--use_cpu", "--max_steps", "2", "--per_device_train_batch_size", "8", "--svc-samples", "0", "--method",
        "neggrad", "--forget_indices", "0", "1"]  # fmt: skip


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (["1", "0", "", "2"], "rows have no label (label), e.g. [2, 6, 10]"),
        (["1.0", "0.0", "2.0", "1.0"], None),
        (["1.5", "0.0", "2.0", "1.0"], "label='label': row 0 holds '1.5', no class"),
        (["True", "False", "True", "False"], "holds True and False, the model has 3 classes"),
        (["low", "high", "low", "high"], "has the classes ['high', 'low'], the model has ['LABEL_0'"),
    ],
)
def test_cells_of_a_csv_file(tmp_path, capsys, cells, words):
    classifier(tmp_path / "model")
    data = write_csv(tmp_path / "t.csv", texts(12), cells * 3)
    command = ["unlearn", "--model", tmp_path / "model", "--train", data, "--output_dir", tmp_path / "out", *FAST]
    assert run(*command, "--no_report") == (words is not None)
    assert words is None or words in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").exists() == (words is None)
    for command, option in (("evaluate", "--forget"), ("memorize", "--train")):
        if words is not None:
            assert run(command, "--model", tmp_path / "model", option, data, "--device", "cpu", "--output-dir",
                       tmp_path / command) == 1  # fmt: skip
            assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("problem", "labels", "reason"),
    [
        (None, [0.5, 1.5, 2.0], "the model predicts values (regression), no classes"),
        ("multi_label_classification", [[1, 0], [0, 1], [1, 1]], "the model gives a sample several labels"),
    ],
)
def test_models_of_values_are_unlearned_and_the_report_says_what_it_lacks(tmp_path, problem, labels, reason, capsys):
    classifier(tmp_path / "model", labels=1 if problem is None else 2, problem_type=problem)
    table = datasets.Dataset.from_dict({"text": texts(12), "label": labels * 4})
    table.to_parquet(tmp_path / "t.parquet")
    command = ["unlearn", "--model", tmp_path / "model", "--train", tmp_path / "t.parquet", "--test",
               tmp_path / "t.parquet", "--output_dir", tmp_path / "out", "--relearn-steps", 2, *FAST]  # fmt: skip
    assert run(*command) == 0
    shown = capsys.readouterr()
    assert f"Tug-of-War: {reason}" in shown.out
    report = json.loads((tmp_path / "out" / "unlearning_report" / "report.json").read_text())
    assert reason in report["metrics"]["accuracy"]["unlearned"]["absent"]
    assert report["metrics"]["loss/forget"]["original"]["n"] == 2 and not report["relearning"]
    assert run("memorize", "--model", tmp_path / "model", "--train", tmp_path / "t.parquet", "--output-dir",
               tmp_path / "m") == 1  # fmt: skip
    assert "memorization is measured by how often a sample's class is told" in capsys.readouterr().err


def test_a_report_that_fails_loses_nothing_and_is_told_in_the_end(tmp_path, capsys, monkeypatch):
    classifier(tmp_path / "model")
    data = write_csv(tmp_path / "t.csv", texts(12), [0, 1, 2] * 4)
    command = ["unlearn", "--model", tmp_path / "model", "--train", data, *FAST]
    fails = ["--feature-layer", "nowhere"]
    assert run(*command, *fails, "--output_dir", tmp_path / "out") == 1
    err = capsys.readouterr().err
    assert "with its card, but its report failed: ValueError: feature_layer='nowhere' is no module" in err
    assert f"sharp-unlearn evaluate --model {tmp_path / 'out'} makes the report" in " ".join(err.split())
    for name in ("model.safetensors", "README.md", "all_results.json", "tokenizer.json"):
        assert (tmp_path / "out" / name).exists(), name
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["eval_forget_samples"] == 2

    def broken(self, *args, **kwargs):
        raise ArithmeticError("planted")

    monkeypatch.setattr(unlearn.UnlearningTrainer, "evaluate", broken)
    assert run(*command, "--no_report", "--output_dir", tmp_path / "other") == 1
    assert "its evaluation failed: ArithmeticError: planted" in capsys.readouterr().err
    assert (tmp_path / "other" / "model.safetensors").exists() and (tmp_path / "other" / "README.md").exists()


def test_a_decoder_that_classifies_and_has_no_padding_token(tmp_path, capsys):
    config = GPT2Config(vocab_size=8, n_embd=16, n_layer=1, n_head=2, n_positions=16, num_labels=3, eos_token_id=0)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "model")
    tokenizer_of(pad_token=None, eos_token="[PAD]").save_pretrained(tmp_path / "model")
    data = write_csv(tmp_path / "t.csv", texts(12), [0, 1, 2] * 4)
    command = ["unlearn", "--model", tmp_path / "model", "--train", data, "--output_dir", tmp_path / "out", *FAST]
    assert run(*command) == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "out").pad_token == "[PAD]"
    assert run("evaluate", "--model", tmp_path / "out", "--reference", tmp_path / "model", "--forget", data,
               "--device", "cpu", "--svc-samples", 0, "--output-dir", tmp_path / "e") == 0  # fmt: skip
    tokenizer_of(pad_token=None).save_pretrained(tmp_path / "model")
    assert run(*command, "--overwrite") == 1
    assert "its tokenizer has no padding and no end token" in capsys.readouterr().err


def test_one_forget_sample_leaves_the_relearning_attack_out(tmp_path, capsys, caplog):
    classifier(tmp_path / "model")
    one = write_csv(tmp_path / "one.csv", texts(1), [0])
    many = write_csv(tmp_path / "many.csv", texts(9), [0, 1, 2] * 3)
    assert run("evaluate", "--model", tmp_path / "model", "--forget", one, "--retain", many, "--relearn-steps", 3,
               "--device", "cpu", "--output-dir", tmp_path / "out") == 0  # fmt: skip
    assert "No relearning attack is made: the forget set has one sample" in caplog.text
    assert "nan" not in capsys.readouterr().out
