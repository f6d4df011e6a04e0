"""The comparison of methods: it runs, goes on where it stopped, picks winners on the tuning seed, writes its tables."""

import csv
import os

import numpy as np
import pytest
import torch
from parts import ROOT

from hf_sharp_unlearn import ASAM, SharpMinMax
from hf_sharp_unlearn.benchmarks import vision
from hf_sharp_unlearn.benchmarks.comparison import configs, plan, runs, stages, tables, tasks
from hf_sharp_unlearn.benchmarks.comparison.plan import Job
from hf_sharp_unlearn.benchmarks.parts.images import Images
from hf_sharp_unlearn.benchmarks.parts.options import parser_of

RESULTS = ROOT / "benchmarks" / "results"


def options(tmp_path, *arguments):
    parser = parser_of("")
    vision.add_options(parser)
    folders = ["--work-dir", str(tmp_path / "work"), "--output-dir", str(tmp_path / "results")]
    return parser.parse_args(["--workers", "0", *folders, *arguments])


def rows_of(tmp_path, config="mini"):
    with open(tmp_path / "results" / f"vision_{config}.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_it_runs_on_digits_resumes_and_writes_tables_and_plot(tmp_path, monkeypatch):
    names = ["NegGrad+, SGD", "released code's semantics"]
    tiny = ["--seeds", "1", "--max-steps", "2", "--only", *names]
    assert not vision.run(options(tmp_path, "--minutes", "0", *tiny)), "no time, no run"
    calls = []
    run_job = runs.run_job

    def counted(job, settings):
        calls.append(job)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return run_job(job, settings)

    monkeypatch.setattr(runs, "run_job", counted)
    with pytest.raises(KeyboardInterrupt):
        vision.run(options(tmp_path, *tiny))
    assert len(rows_of(tmp_path)) == 6
    assert vision.run(options(tmp_path, *tiny))
    rows = rows_of(tmp_path)
    trained, tuned, nothing, reported = 2 + 3, 2 * 6, 2, 2 + 1
    assert len(rows) == len({plan.key_of(row) for row in rows}) == trained + tuned + nothing + reported
    assert len(calls) == len(rows) + 1, "nothing was run twice"
    assert vision.run(options(tmp_path, *tiny)) and len(rows_of(tmp_path)) == len(rows)
    for row in rows:
        if row["name"] != "original":
            assert 0 <= float(row["tow"]) <= 1 and float(row["cpu_seconds"]) >= 0
        if row["name"] == "retrained":
            assert float(row["tow"]) == float(row["tow_signed"]) == 1
    files = {name for name in os.listdir(tmp_path / "results")}
    assert {f"vision_mini_digits{end}" for end in (".md", ".png", "_summary.csv")} < files
    with open(tmp_path / "results" / "vision_mini_digits.md") as file:
        text = file.read()
    assert "NegGrad+, SGD" in text and "6 % at random" in text and "ablations" in text and "one seed" in text


def test_cifar100_configuration_two_steps(tmp_path):
    """ResNet-50 on images and scores in the form in which CIFAR-100 comes."""
    import datasets
    from PIL import Image

    generator = np.random.default_rng(0)
    features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.Value("int64")})
    for split, size in (("train", 40), ("test", 10)):
        pixels = generator.integers(0, 256, (size, 8, 8, 3), dtype=np.uint8)
        rows = {"img": [Image.fromarray(p) for p in pixels], "fine_label": [i % 5 for i in range(size)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / f"{split}.parquet"))
    np.save(tmp_path / "scores.npy", np.linspace(1, 0, 40))
    made = options(tmp_path, "--config", "cifar100", "--data", str(tmp_path), "--scores", str(tmp_path / "scores.npy"))
    made.batch, made.max_steps = 4, 2
    settings = stages.settings_of(made)
    os.makedirs(made.work_dir)
    assert settings.task.classes == 5 and settings.task.forget_rows("hard", 0.06, 0).tolist() == [38, 39]
    for job in (
        Job("original", 0, ""),
        Job("retrained", 0, "hard"),
        Job("Sharp MinMax, ASAM 1.0", 0, "hard", (0.01, 0.95)),
    ):
        row = runs.run_job(job, settings)
    assert {"retain", "forget", "test", "tow", "tow_signed"} <= row.keys()
    model = runs.build_model("resnet50", settings.task)
    assert model.timm_model.conv1.weight.shape == (64, 3, 3, 3)


def test_forget_sets_are_the_lowest_scores_or_drawn_by_seed():
    data = Images(torch.zeros(50, 1, 2, 2), torch.zeros(50, dtype=torch.long))
    scores = np.random.default_rng(0).random(50)
    task = tasks.Task(data, data, 1, scores, "x")
    hard = task.forget_rows("hard", 0.1, 3)
    assert scores[hard].max() <= np.delete(scores, hard).min() and len(hard) == 5
    drawn = [task.forget_rows("random", 0.1, seed) for seed in (0, 0, 1)]
    assert np.array_equal(drawn[0], drawn[1]) and not np.array_equal(drawn[0], drawn[2])


def test_every_configuration_has_six_grid_points_and_a_method_at_each():
    for config in configs.CONFIGS.values():
        assert len(set(config.grid)) == 6
        methods = [config.make(*point) for point in config.grid] if config.make else []
        assert all(type(method) is type(methods[0]) for method in methods)
    assert configs.CONFIGS["Sharp MinMax, overlap"].make(0.1, 0.9) == SharpMinMax(0.9, ASAM(1.0), overlap=True)


def test_the_winner_is_the_best_tug_of_war_on_the_tuning_seed_and_its_rows_are_reported():
    name = "NegGrad+, SGD"
    grid = configs.CONFIGS[name].grid
    base = {"selection": "hard", "name": name, "retain": "1", "forget": "0", "test": "1", "tow_signed": "1"}
    rows = [
        {**base, "seed": seed, "rate": str(rate), "strength": str(strength), "tow": str(tow), "cpu_seconds": "3"}
        for seed in ("100", "0", "1")
        for (rate, strength), tow in zip(grid, (0.1, 0.2, 0.9, 0.3, 0.4, 0.5), strict=True)
    ]
    rows += [{**base, "name": "retrained", "seed": s, "rate": "", "strength": "", "tow": "1", "cpu_seconds": "12"}
             for s in ("100", "0", "1")]  # fmt: skip
    winners = plan.winners_of(rows, [name])
    assert winners == {name: grid[2]}
    found = tables.reported(rows, [name])
    assert [row["seed"] for row in found["hard", name]] == ["0", "1"]
    assert all(row["share"] == 0.25 and row["tow"] == "0.9" for row in found["hard", name])
    (line,) = [line for line in tables.summaries(rows, [name])["hard"] if line["name"] == name]
    assert line["n"] == 2 and line["tow"] == 0.9 and line["tow_sd"] == 0


def test_a_split_holds_every_training_sample_once_and_forgets_what_was_selected():
    data = Images(torch.arange(50.0).reshape(50, 1, 1, 1), torch.zeros(50, dtype=torch.long))
    task = tasks.Task(data, data, 1, np.random.default_rng(0).random(50), "x")
    for selection in ("hard", "random"):
        sets = runs.split(task, selection, 3, augment=True)
        forget, retain = (sets[name].pixels.flatten().int().tolist() for name in ("forget", "retain"))
        assert forget == task.forget_rows(selection, 0.06, 3).tolist()
        assert sorted(forget + retain) == list(range(50)) and retain == sorted(retain)
        assert sets["retain"].augment and not sets["test"].augment


def test_data_that_is_not_there_is_said_in_a_line(tmp_path):
    with pytest.raises(SystemExit, match="data='cifar100-mini' is neither a folder with train.*nor a data set"):
        vision.main(["--config", "mini", "--data", "cifar100-mini", "--scores", "none.npy", "--workers", "0",
                     "--work-dir", str(tmp_path)])  # fmt: skip


def test_the_page_counts_the_winners_at_the_end_of_their_grid():
    with open(RESULTS / "vision_mini.csv", newline="") as file:
        winners = plan.winners_of(list(csv.DictReader(file)), list(configs.CONFIGS))
    ends = sum(winners[name][0] == max(point[0] for point in config.grid) for name, config in configs.CONFIGS.items())
    assert f"{ends} of {len(winners)} winners have the largest" in (ROOT / "docs" / "methods.md").read_text("utf-8")


def test_the_committed_tables_are_those_of_the_committed_rows(tmp_path):
    with open(RESULTS / "vision_mini.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    tables.write(rows, list(configs.CONFIGS), str(tmp_path / "made"))
    for end in (".md", "_summary.csv"):
        made = (tmp_path / f"made{end}").read_bytes()
        assert made == (RESULTS / f"vision_mini_cifar100-mini{end}").read_bytes(), end
