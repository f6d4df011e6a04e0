"""Launches launch nothing, tables are kept or made as the way says, and the command writes its rows."""

import csv

import pytest

from hf_sharp_unlearn.benchmarks import host
from hf_sharp_unlearn.kernels import metered, multi_tensor
from hf_sharp_unlearn.step import optim


@pytest.mark.parametrize("optimizer", [optim.SGD, optim.AdamW])
def test_the_ways_do_what_they_say(optimizer):
    own = multi_tensor.launch, multi_tensor.table_of
    step, seen = host.Step(5, optimizer), {}
    with host.nothing_launched():
        for _ in range(3):
            step.run("kept")
        for way in host.WAYS:
            step.run("kept")
            with metered() as meter:
                found = step.run(way)
            seen[way] = meter
            assert found["all"] > found["table_of"] > 0
    assert (multi_tensor.launch, multi_tensor.table_of) == own
    assert seen["kept"].rebuilds == 0 < seen["kept"].rewrites
    assert seen["made"].rebuilds >= 5
    # Both shadow sweeps share a table: gradients that stay are written there in turn; AdamW's numbers change.
    assert seen["known"].rebuilds == 0 and seen["known"].rewrites < seen["kept"].rewrites


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(host, "LISTS", {"small": (3, optim.SGD)})
    host.main(["--rounds", "1", "--output-dir", str(tmp_path)])
    assert "kept / made" in capsys.readouterr().out
    with open(tmp_path / "host.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["sweep"] for row in rows] == ["norms", "displace", "compose", "update", "all", "table_of"]
