"""`sharp-unlearn methods` and docs/methods.md say what the code has."""

import subprocess
import sys
import warnings

import pytest
from parts import ROOT

from hf_sharp_unlearn import METHODS
from hf_sharp_unlearn.commands.cli import main

PAGE = ROOT / "docs" / "methods.md"


def test_methods_lists_every_method_with_its_settings_and_their_source(capsys):
    assert main(["methods"]) == 0
    entries = dict(part.split("\n", 1) for part in capsys.readouterr().out.strip().split("\n\n"))
    assert list(entries) == list(METHODS)
    for name, text in entries.items():
        assert METHODS[name].__name__ + "(" in text and "sharpness=" in text and "Published settings:" in text


@pytest.mark.parametrize("name", METHODS)
def test_a_name_prints_the_whole_description(capsys, name):
    assert main(["methods", name]) == 0
    text = capsys.readouterr().out
    assert text.startswith(METHODS[name].__name__) and "sharpness" in text and len(text.splitlines()) > 12


def test_an_unknown_name_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as raised:
        main(["methods", "nonsense"])
    assert raised.value.code == 2 and "scrub" in capsys.readouterr().err


def test_a_reader_that_stops_early_is_no_error():
    command = f"{sys.executable} -m hf_sharp_unlearn methods | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, timeout=120)
    assert done.stdout == "finetune\n" and done.stderr == ""


def test_the_page_names_every_method_and_its_code_runs(tmp_path, monkeypatch, capsys):
    with open(PAGE) as file:
        text = file.read()
    for name, cls in METHODS.items():
        assert f"| `{name}` | `{cls.__name__}` |" in text
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'pin_memory' argument")
        exec(compile(text.split("```python\n")[1].split("```")[0], "methods.md", "exec"), scope)
    assert scope["trainer"].state.global_step > 0
