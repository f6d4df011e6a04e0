"""The benchmark of what a report costs, on a few images; and the memory bound of the Wasserstein distance, in full
size."""

import csv

from optional_packages import needs

from hf_sharp_unlearn.benchmarks import evaluation


def test_w_p_of_10000_samples_with_2048_features_stays_under_4_gib():
    needs("ot")
    before, peak = evaluation.peak_memory()
    assert 0.15 < before < peak < 4, "the two sets alone are 0.15 GiB"


def test_a_row_has_ratio_seconds_and_numbers_of_samples(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "SIZES", {"forget": 20, "retain": 60, "test": 40})
    monkeypatch.setattr(evaluation, "peak_memory", lambda: (1.0, 2.0))  # measured above
    evaluation.main(["--rounds", "1", "--train-steps", "2", "--output-dir", str(tmp_path), "--batch", "32"])
    with open(tmp_path / "evaluation.csv") as file:
        (row,) = csv.DictReader(file)
    assert row["images"] == "120" and row["svc_samples_a_side"] == "40" and row["stem"] == "7x7"
    assert float(row["report_to_forward_50"]) > 0 and float(row["seconds_svc"]) >= 0
    assert "appended to" in capsys.readouterr().out
