"""The benchmark of loaders, on a few pictures."""

import csv

from hf_sharp_unlearn.benchmarks import loading


def test_every_way_has_a_row_beside_the_models(tmp_path, capsys):
    arguments = ["--images", "16", "--batch", "8", "--size", "8", "--rounds", "1", "--steps", "1"]
    loading.main([*arguments, "--output-dir", str(tmp_path)])
    with open(tmp_path / "loading.csv") as file:
        rows = {row["way"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["process", "disk", "disk_crop", "memory", "memory_crop", "step"]
    assert (
        all(float(row["pictures_per_second_50"]) > 0 for row in rows.values()) and rows["step"]["to_step_50"] == "1.0"
    )
    assert "times the model's" in capsys.readouterr().out
