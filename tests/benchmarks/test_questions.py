"""From the folder and its README one sees the questions; every command that the documentation shows is one."""

import argparse
import ast
import csv
import importlib
import json
import re
import runpy
import shlex
import sys

import pytest
import torch
from parts import ROOT

from hf_sharp_unlearn.benchmarks.parts import options, rows
from hf_sharp_unlearn.commands import cli

FOLDER = ROOT / "benchmarks"
QUESTIONS = sorted(path for path in FOLDER.glob("*.py") if path.stem != "__init__")
README = (FOLDER / "README.md").read_text("utf-8")
TABLE = [line.split(" | ") for line in README.splitlines() if line.startswith("| ") and ".py`" in line]
SHOWN = re.compile(
    r"(?:python -m hf_sharp_unlearn\.benchmarks\.(\w+)|python benchmarks/(\w+)\.py|sharp-unlearn benchmark\b)([^`\n]*)"
)


def test_every_file_of_the_folder_is_a_question_with_a_line_in_the_readme():
    for path in QUESTIONS:
        text = ast.get_docstring(ast.parse(path.read_text("utf-8")))
        assert "?" in text.split("\n\n")[0], f"{path.name} asks nothing"
    assert sorted(file for _, file, *_ in TABLE) == [f"`{path.name}`" for path in QUESTIONS]


def test_the_readme_names_the_folders_files_and_every_committed_result():
    for folder in ("parts", "comparison", "gpu"):
        for path in (FOLDER / folder).glob("*.py"):
            assert path.stem == "__init__" or f" {path.name}" in README, f"{folder}/{path.name}"
    made = {name: where for *_, results, where, _ in TABLE for name in re.findall(r"`([\w-]+\.\w+)`", results)}
    assert set(made) == {path.name for path in (FOLDER / "results").iterdir() if path.is_file()}
    for path in (FOLDER / "results" / "gpu").glob("*"):  # a run of gpu_check.py each
        summary = json.loads((path / "summary.json").read_text("utf-8"))
        assert path.name in README and not summary["quick"], path.name
    for name, where in made.items():
        if name.endswith(".csv") and not name.endswith("_summary.csv"):
            with open(FOLDER / "results" / name, newline="") as file:
                for row in csv.DictReader(file):
                    assert row["date"] in where and row["commit"] in where, f"{name}: when and at which commit"


@pytest.mark.parametrize("path", QUESTIONS, ids=lambda path: path.stem)
def test_a_question_is_a_command(path, monkeypatch, capsys):
    """As `python benchmarks/FILE.py --help` runs it."""
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(path), run_name="__main__")
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "--output-dir" in shown and "?" in shown


def test_no_question_hides_a_package():
    """`python benchmarks/FILE.py` puts the folder in front: `kernels.py` would break `import transformers`."""
    taken = {path.stem for path in QUESTIONS} | {"parts", "comparison", "gpu"}
    assert not taken & {"kernels", "evaluate", "datasets", "timm", *sys.stdlib_module_names}


class Understood(BaseException):
    """Not an error that a command would catch."""


def test_commands_in_the_documentation_are_understood(monkeypatch):
    understand = argparse.ArgumentParser.parse_args

    def stop(self, *arguments, **keywords):
        understand(self, *arguments, **keywords)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    found = 0
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", FOLDER / "README.md", *(ROOT / "docs").glob("*.md")):
        for module, file, rest in SHOWN.findall(path.read_text("utf-8")):
            if "FILE" in (module, file):
                continue
            words, name = shlex.split(rest), module or file
            main = importlib.import_module(f"hf_sharp_unlearn.benchmarks.{name}").main if name else cli.main
            with pytest.raises(Understood):
                main(words if name else ["benchmark", *words])
            found += 1
    assert found >= 10


# ---- rows ----


def test_quantiles():
    assert rows.quantiles([3.0]) == (3.0, 3.0, 3.0)
    assert rows.quantiles([float(i) for i in range(11)]) == pytest.approx((2.0, 5.0, 8.0))


def test_rows_are_appended_and_other_columns_are_refused(tmp_path):
    path = str(tmp_path / "x.csv")
    rows.append(path, [{"a": 1, "b": 2}])
    rows.append(path, [{"a": 3, "b": 4}, {"a": 5, "b": 6}])
    with pytest.raises(ValueError, match="has the columns"):
        rows.append(path, [{"a": 7, "c": 8}])
    with open(path, newline="") as file:
        assert [list(row.values()) for row in csv.DictReader(file)] == [["1", "2"], ["3", "4"], ["5", "6"]]


def test_new_rows_have_the_columns_of_the_committed_ones():
    """So that the commands can append to them."""
    around = list(rows.surroundings(torch.device("cpu")))
    for name in ("kernels", "training", "evaluation", "loading"):
        with open(FOLDER / "results" / f"{name}.csv", newline="") as file:
            assert next(csv.reader(file))[-len(around) :] == around


def test_results_go_beside_the_benchmarks_or_into_a_folder_here(tmp_path, monkeypatch):
    assert options.results_folder(None) == str(FOLDER / "results")
    monkeypatch.setattr(options, "RESULTS", str(tmp_path / "none"))
    monkeypatch.chdir(tmp_path)
    assert options.results_folder(None) == "benchmark_output" and (tmp_path / "benchmark_output").is_dir()
    assert options.results_folder(str(tmp_path / "mine")) == str(tmp_path / "mine") and (tmp_path / "mine").is_dir()
