"""The command line and the demo, shortened: what it prints and writes. The full demo is `make demo`."""

import ast
import json
import os
import shutil
import subprocess
import sys
import warnings

import pytest
from transformers import AutoImageProcessor, AutoModelForImageClassification

import docs
from hf_sharp_unlearn import UnlearningReport, demo
from hf_sharp_unlearn.commands import cli


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    patch = pytest.MonkeyPatch()
    patch.setitem(demo.TRAINING, "num_train_epochs", 10)
    rows = demo.run_demo(seeds=2, output_dir=str(out))
    patch.undo()
    return out, rows


def test_the_demo_forgets_wrong_labels(short):
    """A quarter of the training of the real demo: the direction is there, the margins are smaller."""
    for row in short[1]:
        assert list(row) == ["do nothing", *(recipe.name for recipe in demo.RECIPES), "retrained"]
        assert row["retrained"]["tow"] == 1.0 and row["retrained"]["share"] == 1.0
        for recipe in demo.RECIPES:
            assert row[recipe.name]["tow"] > row["do nothing"]["tow"]
            assert row[recipe.name]["forget"] < row["do nothing"]["forget"]
            assert row[recipe.name]["seconds"] > 0


def test_the_table_names_every_row_and_recipe_and_gives_the_spread(short):
    text = (short[0] / "table.txt").read_text()
    for recipe in demo.RECIPES:
        assert text.count(recipe.name) == 2
        assert f"lr {recipe.learning_rate}, epochs {recipe.epochs}, alpha {recipe.method.alpha}" in text
    assert "fraction 0.05, overlap False" in text and "rho 1.0" in text and "±" in text
    assert "mean ± standard deviation over 2 seeds" in text
    results = json.loads((short[0] / "results.json").read_text())
    assert len(results["runs"]) == 2 and len(results["curves"][0]["Sharp MinMax"]) > 5


def test_the_plot_is_a_png_and_the_model_loads_with_its_processor(short):
    assert (short[0] / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    saved = str(short[0] / "sharp_minmax")
    model = AutoModelForImageClassification.from_pretrained(saved)
    train, wrong, test = demo.digits_with_wrong_labels(0)
    retain = [row for i, row in enumerate(train) if i not in set(wrong)]
    found = demo.accuracies(model, {"retain": retain, "forget": [train[i] for i in wrong], "test": test})
    assert found == {split: short[1][0]["Sharp MinMax"][split] for split in demo.SPLITS}
    assert AutoImageProcessor.from_pretrained(saved) is not None


def test_the_demo_ends_with_the_report_and_the_data_to_make_it_again(short):
    report = UnlearningReport.load(str(short[0] / "report" / "report.json"))
    rows = short[1][0]
    for model, row in (("unlearned", "Sharp MinMax"), ("retrained", "retrained"), ("original", "do nothing")):
        for split in demo.SPLITS:
            assert report.metrics[f"accuracy/{split}"][model].value == pytest.approx(rows[row][split])
    assert report["tug_of_war"].value == pytest.approx(rows["Sharp MinMax"]["tow"])
    assert set(report.relearning) == {"unlearned", "retrained", "original"}
    plots = {path.name for path in (short[0] / "report").glob("*.png")}
    assert plots == {"accuracy.png", "roc.png", "confidence.png", "relearning.png", "features.png"}
    again = short[0] / "again"
    files = [word for split in demo.SPLITS for word in (f"--{split}", str(short[0] / "data" / f"{split}.parquet"))]
    models = ["--model", str(short[0] / "sharp_minmax"), "--reference", str(short[0] / "retrained")]
    assert cli.main(["evaluate", *models, *files, "--output-dir", str(again), "--seed", "0", "--device", "cpu"]) == 0
    found = UnlearningReport.load(str(again / "report.json"))
    assert found["tug_of_war"].value == report["tug_of_war"].value


QUICKER = {
    "--models 60 --epochs 30": "--models 5 --epochs 6",
    "evaluate --model": "evaluate --svc-samples 0 --model",
    "sharp-unlearn landscape": "sharp-unlearn landscape --points 3 --samples 64",
    "--output_dir unlearned": "--output_dir unlearned --svc_samples 0 --relearn_steps 2",
}


def test_the_pages_run_top_to_bottom_in_one_folder(short, tmp_path, monkeypatch):
    """On the short demo's models, so the numbers are other ones; `make test-docs` compares these."""
    shutil.copytree(short[0], tmp_path / "demo_output")
    monkeypatch.chdir(tmp_path)

    def quicker(block):
        text = block.text
        for long, brief in QUICKER.items():
            text = text.replace(long, brief)
        return text

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'pin_memory' argument")
        shown = {
            page: docs.run_page(page, quicker, lambda b: "me/" in b.text or "sharp-unlearn demo" in b.text)
            for page in docs.PAGES
        }
    texts = {block.text.split()[0]: printed for found in shown.values() for block, printed in found}
    printed = ast.literal_eval(texts["{'retain':"].splitlines()[-1])
    assert list(printed) == ["retain", "forget", "test"] and printed["forget"] < printed["retain"]
    assert "Tug-of-War: 0." in texts["split"] and "written: unlearned" in texts["split"]
    for name in ("out/report/report.md", "unlearning_report/report.md", "report_from_python/relearning.png"):
        assert (tmp_path / name).exists(), name


def test_what_pages_show_is_compared_within_limits():
    shown = "retain  1,366  0.0103  0.9956\nTug-of-War: 0.941\n"
    assert docs.difference(shown, "noise\nretain 1,366 0.0200 0.9900\nTug-of-War: 0.97") is None
    assert "1,366" in docs.difference(shown, "retain 1,367 0.0103 0.9956\nTug-of-War: 0.941")
    assert "0.941" in docs.difference(shown, "retain 1,366 0.0103 0.9956\nTug-of-War: 0.801")
    assert "fewer" in docs.difference(shown, "retain 1,366 0.0103 0.9956\n")
    assert "word" in docs.difference("a word 1", "a work 1")


def test_the_forget_set_is_the_images_with_a_wrong_label():
    train, wrong, test = demo.digits_with_wrong_labels(0)
    again, same, _ = demo.digits_with_wrong_labels(0)
    assert wrong == same and len(wrong) == round(0.05 * len(train)) and len(train) + len(test) == 1797
    clean = {row["pixel_values"].numpy().tobytes(): label for row, label in zip(*_all_digits(), strict=True)}
    mismatched = {i for i, row in enumerate(train) if clean[row["pixel_values"].numpy().tobytes()] != row["labels"]}
    assert mismatched == set(wrong)


def _all_digits():
    patch = pytest.MonkeyPatch()
    patch.setattr(demo, "WRONG_LABELS", 0.0)
    train, _, test = demo.digits_with_wrong_labels(5)
    patch.undo()
    return train + test, [row["labels"] for row in train + test]


def test_exit_codes_and_errors_of_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--seeds", "0"]) == 2
    for arguments in ([], ["nonsense"], ["demo", "--seeds", "x"], ["demo", "--seed", "1"]):
        with pytest.raises(SystemExit) as raised:
            cli.main(arguments)
        assert raised.value.code == 2
    capsys.readouterr()

    def failing(**kwargs):
        raise kwargs_error

    monkeypatch.setattr(demo, "run_demo", failing)
    kwargs_error = RuntimeError("no disk")
    assert cli.main(["demo"]) == 1
    assert capsys.readouterr().err == "sharp-unlearn: RuntimeError: no disk (--debug prints the traceback)\n"
    with pytest.raises(RuntimeError):
        cli.main(["demo", "--debug"])
    kwargs_error = KeyboardInterrupt()
    assert cli.main(["demo"]) == 130
    (tmp_path / "demo_output").mkdir()
    (tmp_path / "demo_output" / "results.json").write_text("{}")
    capsys.readouterr()
    assert cli.main(["demo"]) == 1 and "pass --overwrite" in capsys.readouterr().err
    assert cli.main(["demo", "--overwrite"]) == 130


def test_the_installed_command_and_the_module_say_how_to_use_them():
    script = os.path.join(os.path.dirname(sys.executable), "sharp-unlearn")
    for command in ([script], [sys.executable, "-m", "hf_sharp_unlearn"]):
        done = subprocess.run([*command, "demo", "--help"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and "--seeds" in done.stdout and "default: 1" in done.stdout
