"""Files that are whole or not there; progress that a log file can hold."""

import io
import sys

import pytest

from hf_sharp_unlearn.runtime import progress as module
from hf_sharp_unlearn.runtime import progress_bar, write_text, written_whole


def test_who_is_interrupted_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "kept.txt"
    write_text(str(path), "old")
    with pytest.raises(KeyboardInterrupt), written_whole(str(path)) as unfinished:
        with open(unfinished, "w") as file:
            file.write("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and [entry.name for entry in tmp_path.iterdir()] == ["kept.txt"]
    write_text(str(path), "new ä")
    assert path.read_text("utf-8") == "new ä"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_on_a_terminal_and_few_lines_elsewhere(monkeypatch, terminal):
    class Screen(io.StringIO):
        def isatty(self):
            return terminal

    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    for _ in progress_bar(range(500), desc="work", mininterval=0, file=screen):
        pass
    text = screen.getvalue()
    if terminal:
        assert text.count("\r") > 100
    else:
        assert "\r" not in text
        lines = text.splitlines()
        assert 1 <= len(lines) <= 3 and "500/500" in lines[-1] and lines[-1].startswith("work")


def test_lines_come_at_most_every_few_seconds(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock) * 0.5)
    out = io.StringIO()
    lines = module._Lines(out)
    for number in range(1000):
        lines.write(f"\r{number}%|")
    assert len(out.getvalue().splitlines()) == 1 + 999 // (module.SECONDS / 0.5)
