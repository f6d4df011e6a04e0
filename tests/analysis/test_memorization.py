"""Memorization: the estimator, its error, resuming, forget sets by score, proxies; on real digits with wrong labels."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from memorize_job import SAMPLES, SlowFit
from parts import SUPPORT, Mlp, assert_same, rows, weights_of
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch import nn
from transformers import Trainer, TrainingArguments

from hf_sharp_unlearn.analysis import (
    MemorizationProxies,
    TrainerFit,
    estimate_memorization,
    forget_sets_by_score,
    holdout_retraining,
    load_scores,
    rank_correlations,
)
from hf_sharp_unlearn.analysis.memorization import combine, subset_rows
from hf_sharp_unlearn.demo import digits_with_wrong_labels

COUNT, MODELS = 300, 80


class Digits(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, pixel_values, labels=None):
        logits = self.net(pixel_values)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def digits():
    """300 real digits, 15 of them (the number is that of `digits_with_wrong_labels`: 5 %) with a wrong label."""
    train, wrong, test = digits_with_wrong_labels(0)
    kept = sorted(wrong)[:30] + [i for i in range(len(train)) if i not in set(wrong)][: COUNT - 30]
    kept = np.random.default_rng(0).permutation(kept)
    return [train[i] for i in kept], np.isin(kept, wrong), test


class DigitsFit:
    """60 full-batch steps: a fit of a tenth of a second."""

    def __init__(self, data):
        self.x = torch.stack([row["pixel_values"] for row in data])
        self.y = torch.tensor([row["labels"] for row in data])

    def __call__(self, rows, seed):
        torch.manual_seed(seed)
        model = Digits()
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        for _ in range(60):
            optimizer.zero_grad()
            model(self.x[rows], self.y[rows])["loss"].backward()
            optimizer.step()
        with torch.no_grad():
            return (model(self.x, self.y)["logits"].argmax(1) == self.y).numpy()


@pytest.fixture(scope="module")
def estimate(tmp_path_factory):
    data, wrong, test = digits()
    folder = str(tmp_path_factory.mktemp("memorization"))
    found = estimate_memorization(DigitsFit(data), COUNT, models=MODELS, output_dir=folder, progress=False)
    return data, wrong, test, folder, found


def test_high_scores_find_planted_wrong_labels(estimate):
    _, wrong, _, _, found = estimate
    assert wrong.sum() == 30 and roc_auc_score(wrong, found.scores) >= 0.9
    assert -1 <= found.scores.min() and found.scores.max() <= 1
    assert found.scores[wrong].mean() > 0.7 > 0.3 > found.scores[~wrong].mean()
    high = forget_sets_by_score(found.scores, 30)["high"]
    assert wrong[high].mean() > 0.6


def test_the_standard_error_shrinks_as_one_over_the_root_of_the_models_and_is_right(estimate):
    *_, folder, found = estimate
    paths = [os.path.join(folder, f"model-{m:05d}.npz") for m in range(MODELS)]
    quarters = [combine(paths[i::4], 0.7) for i in range(4)]
    size = [np.sqrt(np.nanmean([part.standard_errors**2 for part in parts])) for parts in (quarters, [found])]
    assert size[0] / size[1] == pytest.approx(2, rel=0.1), "a quarter of the models, twice the error"
    scores = np.stack([part.scores for part in quarters])
    assert np.sqrt(np.nanmean(np.nanvar(scores, 0, ddof=1))) == pytest.approx(size[0], rel=0.15), "it is the spread"


def test_the_interval_contains_the_score_and_is_never_empty(estimate):
    found = estimate[-1]
    assert (found.low <= found.scores).all() and (found.scores <= found.high).all()
    agreed = found.standard_errors == 0
    assert agreed.any() and (found.high - found.low)[agreed].min() > 0.03
    known = ~agreed
    width = (found.high - found.low)[known] / found.standard_errors[known]
    assert 2.5 < np.median(width) < 5.5, "about four standard errors"


def test_the_estimator_by_hand(tmp_path):
    """Three models: with {0, 1}, {0, 2}, {1, 2} of three samples."""
    answers = [[1, 1, 0], [1, 0, 1], [0, 1, 0]]
    members = [[0, 1], [0, 2], [1, 2]]
    paths = []
    for i, (member, right) in enumerate(zip(members, answers, strict=True)):
        paths.append(str(tmp_path / f"{i}.npz"))
        np.savez(paths[-1], rows=np.array(member), correct=np.array(right, np.float32))
    found = combine(paths, 2 / 3)
    assert found.scores.tolist() == [1 - 0, 1 - 0, 0.5 - 0]
    assert found.trained_with.tolist() == [2, 2, 2] and found.trained_without.tolist() == [1, 1, 1]
    assert np.isnan(found.standard_errors).all(), "one model without it has no spread"
    four = combine(paths * 2, 2 / 3)
    assert four.scores.tolist() == found.scores.tolist()
    assert four.standard_errors[2] == pytest.approx(np.sqrt(0.5 * 0.5 / 3)) and four.standard_errors[0] == 0
    # Newcombe's method 10 for 2 of 4 against 0 of 2, with z = 1.96
    assert four.low[2] == pytest.approx(0.5 - np.hypot(0.5 - 0.15004, 0.65762), abs=1e-4)
    assert four.high[2] == pytest.approx(0.5 + (0.84996 - 0.5), abs=1e-4)
    one = combine(paths[:1], 2 / 3)
    assert np.isnan(one.scores).all() and np.isnan(one.standard_errors).all(), "no model without sample 0, or with 2"


def test_subsets_have_the_right_size_and_depend_on_seed_and_number_only():
    subset = subset_rows(50, 35, 3, 7)
    assert len(set(subset)) == 35 and (np.diff(subset) > 0).all()
    assert (subset == subset_rows(50, 35, 3, 7)).all()
    assert (subset != subset_rows(50, 35, 3, 8)).any() and (subset != subset_rows(50, 35, 4, 7)).any()
    counts = np.bincount(np.concatenate([subset_rows(50, 35, 0, m) for m in range(400)]), minlength=50)
    assert abs(counts / 400 - 0.7).max() < 0.1


def whole_run(folder, **kwargs):
    options = {"models": 12, "output_dir": str(folder), "seed": 5, "progress": False, **kwargs}
    return estimate_memorization(SlowFit(0), SAMPLES, **options)


def same(one, other):
    for name, value in vars(one).items():
        assert np.array_equal(value, getattr(other, name), equal_nan=True), name


def test_a_killed_run_goes_on_and_gives_the_same_scores(tmp_path):
    job = str(SUPPORT / "memorize_job.py")
    process = subprocess.Popen([sys.executable, job, str(tmp_path / "killed"), "0.3"])
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "killed").glob("model-*.npz"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("model-*.npz")}
    assert 3 <= len(done) < 12
    resumed, whole = whole_run(tmp_path / "killed"), whole_run(tmp_path / "whole")
    same(resumed, whole)
    for name, time_of in done.items():
        assert (tmp_path / "killed" / name).stat().st_mtime_ns == time_of, "what was done is not done again"


def test_several_processes_give_the_same_scores_and_more_models_add_to_them(tmp_path):
    whole = whole_run(tmp_path / "one")
    both = whole_run(tmp_path / "two", processes=2)
    same(whole, both)
    more = whole_run(tmp_path / "one", models=20)
    assert more.trained_with.sum() == 20 * round(0.7 * SAMPLES) and (more.scores != whole.scores).any()


def test_an_interrupt_leaves_whole_files_only(tmp_path):
    calls = []

    def fit(rows, seed):
        calls.append(seed)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return SlowFit(0)(rows, seed)

    with pytest.raises(KeyboardInterrupt):
        estimate_memorization(fit, SAMPLES, models=12, output_dir=str(tmp_path / "a"), seed=5, progress=False)
    assert len(list((tmp_path / "a").iterdir())) == 4, "settings and three models"
    same(whole_run(tmp_path / "a"), whole_run(tmp_path / "b"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ratio": 1.0}, "ratio=1.0"),
        ({"ratio": 0.01}, "is 0: a subset needs some samples"),
        ({"models": 1}, "models=1"),
        ({"processes": 0}, "processes=0"),
    ],
)
def test_refuses(options, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        whole_run(tmp_path / "x", **options)
    assert not (tmp_path / "x").exists(), "before any work"


def test_refuses_models_of_another_estimate_and_answers_that_are_none(tmp_path):
    whole_run(tmp_path / "x")
    for options in ({"seed": 6}, {"ratio": 0.5}, {"settings": {"epochs": 3}}):
        with pytest.raises(ValueError, match="holds models of .* use another one"):
            whole_run(tmp_path / "x", **options)
    for answer in (np.zeros(3), np.full(SAMPLES, 2.0), np.full(SAMPLES, np.nan)):
        with pytest.raises(ValueError, match="fit returned"):
            estimate_memorization(
                lambda rows, seed, answer=answer: answer, SAMPLES, output_dir=str(tmp_path / "y"), progress=False
            )


def test_trainer_fit_trains_with_transformers_trainer_on_the_rows_alone(tmp_path):
    data = rows(30)
    arguments = {"num_train_epochs": 2, "per_device_train_batch_size": 5, "learning_rate": 0.05, "use_cpu": True}
    fit = TrainerFit(Mlp, data, arguments)
    chosen = np.arange(0, 30, 2)
    model = fit.train(chosen, 3)
    torch.manual_seed(0)
    plain = TrainingArguments(str(tmp_path), seed=3, report_to="none", save_strategy="no", disable_tqdm=True,
                              dataloader_pin_memory=False, **arguments)  # fmt: skip
    trainer = Trainer(Mlp(), plain, train_dataset=[data[i] for i in chosen])
    trainer.train()
    assert_same(weights_of(model), weights_of(trainer.model))
    assert fit(chosen, 3).shape == (30,) and (fit(chosen, 3) == fit(chosen, 3)).all()
    found = estimate_memorization(fit, 30, models=4, output_dir=str(tmp_path / "m"), processes=2, progress=False)
    assert found.scores.shape == (30,)
    found.save(str(tmp_path / "scores.npz"))
    assert np.array_equal(load_scores(str(tmp_path / "scores.npz"), "scores"), found.scores, equal_nan=True)


# ---- proxies ----


def test_proxies_rank_as_memorization_does(estimate, tmp_path):
    """Learning events of one run, and holdout retraining, on the digits whose memorization is known."""
    data, wrong, test, _, found = estimate
    watch = MemorizationProxies(data)
    arguments = {"num_train_epochs": 12, "per_device_train_batch_size": 50, "learning_rate": 3e-3, "use_cpu": True}
    model = TrainerFit(Digits, data, arguments, callbacks=(watch,)).train(np.arange(COUNT), 0)
    assert watch.epochs == 12
    proxies = watch.scores()
    before = weights_of(model)
    proxies["holdout"] = holdout_retraining(model, test, data, steps=60, learning_rate=3e-3, progress=False)
    assert_same(before, weights_of(model))
    correlations = rank_correlations(found.scores, proxies)
    assert set(correlations) == {"confidence", "max_confidence", "entropy", "accuracy", "forgetting_events", "holdout"}
    expected = stats.spearmanr(found.scores, proxies["confidence"]).statistic
    assert correlations["confidence"] == pytest.approx(expected)
    assert correlations["confidence"] > 0.4 and correlations["holdout"] > 0.3
    assert roc_auc_score(wrong, proxies["confidence"]) > 0.85
    assert roc_auc_score(wrong, proxies["holdout"]) > 0.6


def test_rank_correlations_leave_out_what_has_no_score():
    found = rank_correlations(
        np.array([0.1, np.nan, 0.3, 0.2]),
        {"a": np.array([1.0, 9, 3, 2]), "b": np.array([3.0, 0, 1, 2]), "c": np.ones(4)},
    )
    assert found["a"] == pytest.approx(1) and found["b"] == pytest.approx(-1) and np.isnan(found["c"])


def test_learning_events_by_hand():
    class Steps(nn.Module):
        """Says class `answers[epoch][sample]`, as sure as a logit of 2."""

        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1))
            self.answers = None

        def forward(self, x, labels=None):
            return {"logits": 2 * nn.functional.one_hot(self.answers[x.long()], 2).float() + 0 * self.w}

    model, data = Steps(), [{"x": float(i), "labels": 1} for i in range(4)]
    watch = MemorizationProxies(data)
    with pytest.raises(ValueError, match="No epoch has ended"):
        watch.scores()
    watch.on_train_begin(None, None, None)
    for answers in ([1, 1, 0, 0], [1, 0, 0, 1], [1, 1, 0, 1], [1, 0, 0, 1]):
        model.answers = torch.tensor(answers)
        watch.on_epoch_end(None, None, None, model=model)
    scores = watch.scores()
    assert scores["forgetting_events"].tolist() == [0, 2, 4, 0], "never right counts as always forgotten"
    assert scores["accuracy"] == pytest.approx([0, 0.5, 1, 0.25])
    p = np.exp(2) / (np.exp(2) + 1)
    assert scores["confidence"] == pytest.approx(1 - np.array([p, 0.5, 1 - p, 0.75 * p + 0.25 * (1 - p)]))
    assert scores["max_confidence"] == pytest.approx([1 - p] * 4)
    assert scores["entropy"] == pytest.approx([-p * np.log(p) - (1 - p) * np.log(1 - p)] * 4)
