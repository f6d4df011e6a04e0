"""The models of a report: classes in another order, other classes, none at all; what is warned of."""

import copy

import numpy as np
import pytest
import torch
from parts import Mlp, rows
from text_models import WORDS, classifier, tokenizer_of, twin
from torch.utils.data import DataLoader

from hf_sharp_unlearn import Relearning, evaluate_unlearning
from hf_sharp_unlearn.metrics import Absent, Estimate
from hf_sharp_unlearn.report import Prepared

NAMES = ["red", "green", "blue"]


def quiet(model, **options):
    return evaluate_unlearning(model, progress=False, **{"svc_samples": 0, **options})


def tokens(count, seed, words=WORDS):
    """Rows of one length, labelled by what they hold."""
    tokenizer = tokenizer_of(words)
    draw = np.random.default_rng(seed)
    found = tokenizer([" ".join(draw.choice(WORDS[2:], size=5)) for _ in range(count)])
    return [
        {"input_ids": ids, "attention_mask": [1] * 5, "labels": int(draw.integers(3))} for ids in found["input_ids"]
    ]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    model = classifier(root / "model", NAMES)
    return model, twin(model, root / "twin", NAMES, [1, 2, 0])


SETS = {"forget": tokens(6, 0), "retain": tokens(14, 1), "test": tokens(8, 2)}


def test_a_reference_that_numbers_its_classes_otherwise_is_understood(pair):
    model, other = pair
    attack = Relearning(samples=3, steps=2, every=1, learning_rate=0.01)
    report = quiet(model, reference=other, shadow_models=[other], relearning=attack, **SETS)
    assert report["tug_of_war"].value == 1 and report["agreement/retain"].value == 1
    outputs = report.outputs["unlearned"]["test"], report.outputs["retrained"]["test"]
    assert outputs[0].logits == pytest.approx(outputs[1].logits, abs=1e-5)
    assert outputs[1].labels.tolist() == [row["labels"] for row in SETS["test"]]
    curves = report.relearning["unlearned"]["forget"], report.relearning["retrained"]["forget"]
    assert [p.value for p in curves[0].accuracy] == [p.value for p in curves[1].accuracy]
    with pytest.raises(ValueError, match="forget is a DataLoader, whose labels cannot be changed"):
        quiet(model, reference=other, forget=DataLoader(SETS["forget"], 2))


def test_other_names_and_other_numbers_of_classes_are_refused(pair, tmp_path):
    model, _ = pair
    for names in (["red", "green", "violet"], ["red", "green"]):
        other = classifier(tmp_path / names[-1], names)
        for role in ("reference", "original"):
            with pytest.raises(ValueError, match=f"has .* classes .*{names[-1]}.*, the model has 3 classes .*'blue'"):
                quiet(model, **{role: other}, **SETS)
    with pytest.raises(ValueError, match="2 classes, the model has 3 classes"):
        quiet(model, reference=classifier(tmp_path / "plain", labels=2), **SETS)
    unnamed = quiet(model, reference=classifier(tmp_path / "three", labels=3), **SETS)
    assert isinstance(unnamed["tug_of_war"], Estimate), "classes without names may be the same ones"


def test_a_model_with_data_of_its_own(pair, tmp_path):
    """Its tokenizer numbers the words otherwise."""
    model, _ = pair
    words = [*WORDS[:2], *WORDS[:1:-1]]
    other = twin(model, tmp_path / "words", NAMES, [0, 1, 2], words)
    own = {name: tokens(len(data), i, words) for i, (name, data) in enumerate(SETS.items())}
    assert quiet(model, reference=Prepared(other, own), **SETS)["tug_of_war"].value == 1
    own["test"] = own["test"][1:]
    with pytest.raises(ValueError, match="its test set has 7 samples, that of the model 8"):
        quiet(model, reference=Prepared(other, own), **SETS)


@pytest.mark.parametrize(
    ("problem", "label", "words"),
    [
        ("regression", lambda i: i / 7, "values"),
        ("multi_label_classification", lambda i: [i % 2, 1.0, 0.5], "several labels"),
    ],
)
def test_models_of_values_have_a_loss_and_the_reason_for_the_rest(tmp_path, problem, label, words):
    labels = 1 if problem == "regression" else 3
    model = classifier(tmp_path / "values", labels=labels, problem_type=problem)
    sets = {
        name: [{**row, "labels": label(i)} for i, row in enumerate(data)] for name, data in SETS.items()
    }  # fmt: skip
    report = quiet(model, reference=copy.deepcopy(model), svc_samples=10, **sets)
    assert isinstance(report["accuracy"], Absent) and words in report["accuracy"].reason
    assert isinstance(report["tug_of_war"], Absent) and isinstance(report["mia_loss/auc"], Estimate)
    with torch.no_grad():
        expected = [
            model(torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss for row in sets["forget"]
        ]
    assert report.outputs["unlearned"]["forget"].loss == pytest.approx(np.array(expected), abs=1e-6)
    report.save(tmp_path / "out")
    with pytest.raises(ValueError, match="relearning=.*the model has no classes"):
        quiet(model, relearning=Relearning(), **sets)


def test_a_destroyed_model_and_a_test_set_that_is_the_forget_set_are_warned_of(tmp_path):
    model = Mlp()
    data = rows(30)
    with torch.no_grad():
        for row in data:
            row["labels"] = int(model(row["x"][None])["logits"].argmax())
    broken = copy.deepcopy(model)
    broken.second.weight.data.neg_().mul_(50)
    sets = {"forget": data[:6], "retain": data[6:24], "test": data[24:]}
    assert quiet(model, original=model, **sets).settings["warnings"] == []
    (warned,) = quiet(broken, original=model, **sets).settings["warnings"]
    assert "no better than chance on the retain set" in warned and "It was 1 before" in warned
    report = quiet(model, **{**sets, "test": list(reversed(data[:6]))})
    assert "The test set is the forget set" in report.settings["warnings"][0]
    assert "> **Warning.** The test set is" in report.to_markdown()
