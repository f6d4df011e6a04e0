"""The report: what is in it, what is absent and why, JSON, markdown, plots; from the trainer; every metric by name."""

import json
import math
import textwrap

import numpy as np
import pytest
import torch
from optional_packages import needs
from parts import LLAMA, ROOT, Mlp, assert_same, images, rows, timm_resnet, weights_of
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from hf_sharp_unlearn import Relearning, UnlearningReport, evaluate_unlearning, tug_of_war
from hf_sharp_unlearn.analysis import fine_tune
from hf_sharp_unlearn.metrics import (
    METRICS,
    Absent,
    Estimate,
    Metric,
    Outputs,
    Subject,
    accuracy_of,
    average_gap,
    compute_metrics,
    table,
    tug_of_war_mia,
)
from hf_sharp_unlearn.metrics.estimate import share

ATTACK = Relearning(samples=4, steps=4, every=2, learning_rate=0.05)


def quiet(model, **options):
    return evaluate_unlearning(model, progress=False, **options)


@pytest.fixture(scope="module")
def sets():
    return {"forget": images(24, seed=1), "retain": images(60, seed=2), "test": images(40, seed=3)}


def trained(data, seed):
    """A model whose answers differ from sample to sample: a fresh one says the same to all."""
    return fine_tune(timm_resnet(seed=seed), data, 15, learning_rate=0.02, seed=seed, progress=False)


@pytest.fixture(scope="module")
def models(sets):
    return [trained(sets["retain"], 0), trained(sets["retain"], 1), trained(sets["forget"], 2)]


@pytest.fixture(scope="module")
def report(sets, models):
    return quiet(models[0], reference=models[1], original=models[2], relearning=ATTACK, **sets)


def test_every_metric_is_there_or_absent_with_the_reason(report):
    for name in METRICS:
        keys = [key for key in report.metrics if key == name or key.startswith(f"{name}/")]
        assert keys, name
    for key, values in report.metrics.items():
        for value in values.values():
            if isinstance(value, Absent):
                assert len(value.reason) > 10
            else:
                assert value.n >= 1 and math.isfinite(value.value), key
                low, high = (value.value if end is None else end for end in (value.low, value.high))
                assert low <= value.value <= high, key
    assert report["mia_lira"].reason == "no shadow models were given"
    assert "unlearned models" in report["klom"].reason
    assert "100 non-members, there are 40" in report["mia_loss/tpr@1%"].reason


def test_every_estimate_has_an_interval(report):
    for key, values in report.metrics.items():
        for value in values.values():
            assert isinstance(value, Absent) or value.low is not None, key


def test_numbers_are_those_of_the_outputs(report):
    accuracies = {
        model: {split: outputs.correct.mean() for split, outputs in splits.items()}
        for model, splits in report.outputs.items()
    }
    assert report["tug_of_war"].value == pytest.approx(tug_of_war(accuracies["unlearned"], accuracies["retrained"]))
    signed = tug_of_war(accuracies["unlearned"], accuracies["retrained"], signed=True)
    assert report["tug_of_war_signed"].value == pytest.approx(signed)
    for split in ("forget", "retain", "test"):
        assert report[f"accuracy/{split}"].value == pytest.approx(accuracies["unlearned"][split])
        assert report.metrics[f"accuracy/{split}"]["original"].value == pytest.approx(accuracies["original"][split])
    assert report["unlearning_accuracy"].value == pytest.approx(1 - accuracies["unlearned"]["forget"])
    efficacy = {m: report.metrics["mia_svc/confidence"][m].value for m in ("unlearned", "retrained")}
    for name, key, function in (
        ("tug_of_war_mia", "mia", tug_of_war_mia),
        ("average_gap", "mia", average_gap),
    ):
        sides = []
        for model in ("unlearned", "retrained"):
            used = ("retain", "test") if name == "tug_of_war_mia" else ("retain", "forget", "test")
            sides.append({**{split: accuracies[model][split] for split in used}, key: efficacy[model]})
        assert report[name].value == pytest.approx(function(*sides)), name
    assert report.metrics["tug_of_war"]["original"].value == pytest.approx(
        tug_of_war(accuracies["original"], accuracies["retrained"])
    )
    assert "retrained" not in report.metrics["tug_of_war"]


def test_a_model_against_itself_is_perfect(sets, models):
    report = quiet(models[0], reference=models[0], **sets)
    assert report["tug_of_war"].value == 1 == report["tug_of_war_mia"].value == report["tug_of_war_signed"].value
    assert report["average_gap"].value == 0 == report["average_gap"].low < report["average_gap"].high
    assert report["tug_of_war"].low < 1 == report["tug_of_war"].high, "24 equal answers do not prove equal accuracies"
    for split in sets:
        assert report[f"agreement/{split}"].value == 1
        assert report[f"jensen_shannon/{split}"].value == pytest.approx(0, abs=1e-9)


def test_without_reference_or_test_set_numbers_are_absent_never_zero(sets):
    alone = quiet(timm_resnet(), forget=sets["forget"])
    for name in ("tug_of_war", "average_gap", "agreement", "jensen_shannon"):
        assert alone[name] == Absent("no retrained model was given (reference)")
    for name in ("mia_loss", "mia_logistic"):
        assert alone[name] == Absent("no test set was given")
    assert alone["mia_svc"] == alone["entanglement"] == Absent("no retain set was given")
    assert isinstance(alone["accuracy/forget"], Estimate) and list(alone.samples) == ["forget"]
    text = alone.to_markdown()
    assert "no retrained model to compare with" in text and "no test set was given" in text
    plain = json.loads(json.dumps(alone.to_dict(), allow_nan=False))
    assert plain["metrics"]["tug_of_war"]["unlearned"] == {"absent": "no retrained model was given (reference)"}
    off = quiet(timm_resnet(), svc_samples=0, **sets)
    assert "switched off" in off["mia_svc"].reason
    with pytest.raises(KeyError, match="'nothing': the report has"):
        alone["nothing"]


def test_an_infinite_value_is_absent_with_its_reason():
    z = np.array([[0.0, -np.inf], [1.0, 0.0]])
    metrics, _ = compute_metrics({"unlearned": Subject({"forget": Outputs.from_logits(z, [1, 0])}, svc_samples=0)})
    assert metrics["loss/forget"]["unlearned"] == Absent("the value is inf (n = 2)")
    assert metrics["accuracy/forget"]["unlearned"].value == 0.5


def test_shadow_models_and_sets_of_models(sets, models, monkeypatch):
    made = []

    def loaded(seeds):
        for seed in seeds:
            made.append(seed)
            yield trained(sets["retain"], seed)

    around = {"unlearned_models": loaded(range(20, 24)), "retrained_models": loaded(range(30, 34))}
    few = quiet(models[0], **around, svc_samples=0, **sets)
    assert "needs at least 20 unlearned models made with different seeds, 4" in few["klom"].reason
    assert isinstance(few["u_lira/accuracy"], Estimate)
    made.clear()
    monkeypatch.setattr(table, "LEAST_MODELS", 3)
    report = quiet(
        models[0],
        shadow_models=loaded([10, 11]),
        unlearned_models=loaded(range(20, 24)),
        retrained_models=loaded(range(30, 36)),
        svc_samples=0,
        **sets,
    )
    assert made == [10, 11, *range(20, 24), *range(30, 36)], "one at a time"
    for key in ("mia_lira/auc", "mia_rmia/auc", "klom/forget/p95", "klom/test/mean", "klom/forget/mean_null",
                "u_lira/accuracy", "u_lira/auc", "forgetting_quality/F", "forgetting_quality/F_null",
                "forgetting_quality/final"):  # fmt: skip
        assert isinstance(report[key], Estimate), key
    assert report["mia_rmia/auc"].n == 20, "one half of the test set is the population"
    assert report.settings["models"] == {"shadow": 2, "unlearned_set": 4, "retrained_set": 6}


def test_one_sample_a_set_and_a_metric_that_fails_leave_the_rest_of_the_report(models, sets, tmp_path, monkeypatch):
    one = quiet(models[0], reference=models[1], forget=sets["forget"][:1], retain=sets["retain"], test=sets["test"][:1])
    assert {path.rsplit("/")[-1] for path in one.save(str(tmp_path))} >= {"report.json", "report.md", "roc.png"}
    assert one["mia_loss/auc"].n == 1 and one["mia_loss/auc"].low is None

    def broken(model):
        raise ValueError("Features contain nan")

    monkeypatch.setitem(METRICS, "entanglement", Metric(broken, "reference"))
    report = quiet(models[0], svc_samples=0, **sets)
    assert report["entanglement"] == Absent("Features contain nan") and report["accuracy/test"].n == 40


def test_slim_outputs_keep_what_sets_of_models_need(report):
    outputs = report.outputs["unlearned"]["forget"]
    slim = outputs.slim()
    assert slim.logits.shape == (24, 0) and slim.features.shape == (24, 0)
    assert (slim.margin == outputs.margin).all() and accuracy_of(slim) == accuracy_of(outputs)


def test_saved_and_loaded_reports_are_the_same_and_hold_no_sample(report, tmp_path):
    paths = [path.rsplit("/")[-1] for path in report.save(str(tmp_path))]
    plots = ["accuracy.png", "roc.png", "confidence.png", "relearning.png", "features.png"]
    assert paths == [*plots, "report.json", "report.md"]
    for name in plots:
        assert (tmp_path / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert f"]({name})" in (tmp_path / "report.md").read_text()
    loaded = UnlearningReport.load(str(tmp_path / "report.json"))
    assert (
        loaded.metrics == report.metrics and loaded.better == report.better and loaded.relearning == report.relearning
    )
    assert loaded.to_dict() == report.to_dict()
    assert loaded.save(str(tmp_path / "again")) == [str(tmp_path / "again" / n) for n in ("report.json", "report.md")]
    written = json.loads((tmp_path / "report.json").read_text())
    assert written["schema_version"] == 1

    def longest(value):
        if isinstance(value, dict):
            return max(map(longest, value.values()), default=0)
        return max(len(value), *map(longest, value), 0) if isinstance(value, list) else 0

    assert longest(written) < 24, "no list as long as a split"
    written["schema_version"] = 2
    (tmp_path / "report.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match="schema version 2, this release reads 1"):
        UnlearningReport.load(str(tmp_path / "report.json"))


def test_the_markdown_has_a_row_a_metric_and_says_what_each_is(report):
    lines = report.to_markdown().splitlines()
    for key, values in report.metrics.items():
        row = [line for line in lines if line.startswith(f"| {key} |")]
        assert len(row) == any(isinstance(value, Estimate) for value in values.values()), key
    header = next(line for line in lines if line.startswith("| metric"))
    assert header == "| metric | better | unlearned | retrained | original | n | how |"
    assert any(line.startswith("| 4 forget samples | unlearned |") for line in lines)
    assert sum(line.startswith("* tug_of_war:") for line in lines) == 1
    assert "none of them proves" in report.to_markdown()


def test_models_are_left_alone_and_the_same_seed_gives_the_same_report(sets):
    model, reference = timm_resnet(), timm_resnet(seed=1)
    model.train()
    before = weights_of(model), weights_of(reference)
    one = quiet(model, reference=reference, relearning=ATTACK, **sets)
    assert_same(before[0], weights_of(model))
    assert_same(before[1], weights_of(reference))
    assert model.training
    two = quiet(model, reference=reference, relearning=ATTACK, **sets)
    a, b = one.to_dict(), two.to_dict()
    for found in (a, b):
        assert set(found.pop("seconds")) == {"forward", "svc", "metrics", "relearning"}
    assert a == b


def test_a_language_model_is_reported_by_token():
    needs("ot")
    torch.manual_seed(0)
    models = [LlamaForCausalLM(LlamaConfig(**LLAMA)).eval() for _ in range(2)]
    ids = torch.randint(3, 19, (40, 6), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in ids]
    report = quiet(
        models[0], reference=models[1], forget=data[:10], retain=data[10:25], test=data[25:], relearning=ATTACK
    )
    outputs = report.outputs["unlearned"]["forget"]
    assert report["accuracy/forget"].value == pytest.approx((outputs.predictions == outputs.targets).mean())
    assert "share of tokens" in report["accuracy/forget"].method and report["accuracy/forget"].n == 10
    assert 0 <= report["agreement/test"].value <= 1 and isinstance(report["mia_svc/modified_entropy"], Estimate)
    assert "token probabilities are not kept" in report["jensen_shannon"].reason
    assert report["entanglement/variance_class_wise"] == Absent("the samples have no class")
    assert isinstance(report["entanglement/wasserstein_2"], Estimate)
    assert report.relearning["unlearned"]["forget"].trained == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "resnet"}, "model is a str"),
        ({"reference": 3}, "reference is a int"),
        ({"forget": None}, "forget=None"),
        ({"test": []}, "test is empty"),
        ({"retain": iter([])}, "retain is a list_iterator: pass a map-style data set, a DataLoader, or retain=None"),
        ({"relearning": ATTACK, "retain": DataLoader(rows(4))}, "retain is a DataLoader: the relearning attack"),
        ({"relearning": ATTACK, "forget": rows(1)}, "forget has one sample"),
        ({"svc_samples": -1}, "svc_samples=-1"),
        ({"feature_layer": "nowhere"}, "feature_layer='nowhere'"),
    ],
)
def test_refuses_before_any_forward_pass(options, words):
    calls = []

    class Counting(Mlp):
        def forward(self, *args, **kwargs):
            calls.append(1)
            return super().forward(*args, **kwargs)

    given = {"model": Counting(), "forget": rows(4), **options}
    with pytest.raises(ValueError, match=words):
        quiet(given.pop("model"), **given)
    assert not calls


def test_the_recipe_for_a_metric_of_ones_own(sets, monkeypatch):
    """CONTRIBUTING's example, word for word."""
    with open(ROOT / "CONTRIBUTING.md") as file:
        code = file.read().split("## Adding a metric")[1].split("```python\n")[1].split("```")[0]
    names = {"Subject": Subject, "Found": dict, "share": share}
    exec(textwrap.dedent(code), names)
    monkeypatch.setitem(METRICS, "wrong_and_sure", Metric(names["wrong_and_sure"], "reference"))
    report = quiet(timm_resnet(), svc_samples=0, **sets)
    forget = report.outputs["unlearned"]["forget"]
    assert report["wrong_and_sure"].value == pytest.approx(
        ((forget.max_confidence > 0.9) & (forget.correct == 0)).mean()
    )
    assert "* wrong_and_sure: Share of forget samples" in report.to_markdown()


def test_samples_that_sets_share_are_a_warning_of_the_report(sets):
    twice = {**sets, "test": sets["forget"]}
    report = quiet(timm_resnet(), svc_samples=0, **twice)
    count = len(sets["forget"])
    said = f"{count} of {count} samples of the forget set are in the test set too (identical inputs)."
    assert said in report.settings["warnings"] and said in report.to_markdown()
    assert not [text for text in quiet(timm_resnet(), svc_samples=0, **sets).settings["warnings"] if "too" in text]
