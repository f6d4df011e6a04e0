"""Tug-of-War and accuracy against hand-computed values, ranges and directions."""

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from hf_sharp_unlearn import tug_of_war
from hf_sharp_unlearn.metrics import METRICS, accuracy, average_gap, predicted_classes, tug_of_war_mia

RETRAINED = {"retain": 1.0, "forget": 0.5, "test": 0.8}


def test_tug_of_war_by_hand():
    unlearned = {"retain": 0.9, "forget": 0.7, "test": 0.75}
    assert tug_of_war(unlearned, RETRAINED) == pytest.approx(0.9 * 0.8 * 0.95)
    assert tug_of_war(unlearned, RETRAINED, signed=True) == pytest.approx(0.9 * 0.8 * 0.95)
    better = {"retain": 1.0, "forget": 0.3, "test": 0.9}
    assert tug_of_war(better, RETRAINED) == pytest.approx(1.0 * 0.8 * 0.9)
    assert tug_of_war(better, RETRAINED, signed=True) == pytest.approx(1.0 * 1.2 * 1.1)


def test_tug_of_war_is_one_at_the_retrained_model_and_lies_in_zero_one():
    assert tug_of_war(RETRAINED, RETRAINED) == 1.0 == tug_of_war(RETRAINED, RETRAINED, signed=True)
    generator = np.random.default_rng(0)
    for _ in range(200):
        a, b = ({split: float(v) for split, v in zip(RETRAINED, generator.random(3), strict=True)} for _ in range(2))
        assert 0 <= tug_of_war(a, b) <= 1 and tug_of_war(a, b) == pytest.approx(tug_of_war(b, a))


@pytest.mark.parametrize(
    ("unlearned", "words"),
    [
        ({**RETRAINED, "test": 75.0}, ["unlearned", "test", "75.0", "100"]),
        ({**RETRAINED, "test": float("nan")}, ["nan"]),
        ({**RETRAINED, "test": -0.1}, ["-0.1"]),
        ({"retain": 1.0, "forget": 0.5}, ["splits", "test"]),
        ({**RETRAINED, "other": 0.5}, ["splits", "other"]),
    ],
)
def test_tug_of_war_refuses(unlearned, words):
    for pair in ((unlearned, RETRAINED), (RETRAINED, unlearned)):
        with pytest.raises(ValueError) as raised:
            tug_of_war(*pair)
        for word in words[1:] if pair[0] is RETRAINED else words:
            assert word in str(raised.value)


def test_tug_of_war_with_membership_inference_by_hand():
    unlearned, retrained = {"retain": 0.9, "mia": 0.7, "test": 0.75}, {"retain": 1.0, "mia": 0.5, "test": 0.8}
    assert tug_of_war_mia(unlearned, retrained) == pytest.approx(0.9 * 0.8 * 0.95)
    assert tug_of_war_mia(retrained, retrained) == 1.0
    with pytest.raises(ValueError, match="splits"):
        tug_of_war_mia({"retain": 0.9, "mia": 0.7}, retrained)


def test_the_average_gap_by_hand_its_range_and_direction():
    retrained = {"forget": 0.5, "retain": 1.0, "test": 0.8, "mia": 0.4}
    assert average_gap({"forget": 0.7, "retain": 0.9, "test": 0.8, "mia": 0.5}, retrained) == pytest.approx(0.1)
    assert average_gap(retrained, retrained) == 0, "lower is better"
    assert average_gap({"a": 0.0, "b": 1.0}, {"a": 1.0, "b": 0.0}) == 1
    for pair in (({"a": 1.0}, {"b": 1.0}), ({}, {})):
        with pytest.raises(ValueError, match="need the same keys"):
            average_gap(*pair)


def test_every_metric_says_what_it_needs_and_which_way_is_better():
    for name, metric in METRICS.items():
        assert metric.better in ("higher", "lower", "reference") and metric.needs in ("model", "reference", "sets"), (
            name
        )
        assert len(metric.compute.__doc__) > 20, "the report prints it"


def of(predictions, labels, **kwargs):
    return accuracy(EvalPrediction(predictions=predictions, label_ids=labels), **kwargs)


def test_accuracy_by_hand():
    assert of(np.array([0, 1, 2, 2]), np.array([0, 1, 1, -100])) == {"accuracy": pytest.approx(2 / 3)}
    tokens, labels = np.array([[5, 6, 7, 8]]), np.array([[9, 5, 6, -100]])
    assert of(tokens, labels, shift=True) == {"accuracy": 1.0}, "position t predicts label t + 1"
    assert of(tokens, labels) == {"accuracy": 0.0}
    assert of(np.array([0.1, 0.2]), np.array([0.1, 0.2])) == {}, "regression has no class accuracy"
    assert of(np.array([0, 1]), np.array([-100, -100])) == {} == of(np.array([0, 1]), None)


def test_predicted_classes_reduce_logits_only_where_labels_are_classes():
    logits = torch.tensor([[0.0, 2.0], [3.0, 1.0]])
    assert predicted_classes(logits, torch.tensor([0, 1])).tolist() == [1, 0]
    assert predicted_classes((logits, "hidden"), torch.tensor([0, 1])).tolist() == [1, 0]
    assert torch.equal(predicted_classes(logits, torch.rand(2, 2)), logits), "multi-label"
    assert torch.equal(predicted_classes(logits, None), logits)
