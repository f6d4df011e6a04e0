"""The label column: whatever a reader made of it, labels are right, or one error names column, value and remedy."""

import math
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optional_packages import datasets
from PIL import Image
from text_models import classifier
from transformers import BertConfig, ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from hf_sharp_unlearn.data.sources import prepare, read_table

NAMES = ["dog", "eel", "cat"]
MODELS = {
    "named": {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}},
    "plain": {"num_labels": 3},
    "two": {"num_labels": 2},
    "truth": {"id2label": {0: "True", 1: "False"}, "label2id": {"True": 0, "False": 1}},
    "value": {"num_labels": 1},
    "values": {"num_labels": 2, "problem_type": "regression"},
    "several": {"num_labels": 3, "problem_type": "multi_label_classification"},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("labels")
    for name, options in MODELS.items():
        BertConfig(architectures=["BertForSequenceClassification"], **options).save_pretrained(root / name)
    return root


def labels_of(models, model, values, feature=None):
    columns = {"x": [0.0] * len(values), "label": values}
    features = None if feature is None else datasets.Features({"x": datasets.Value("float32"), "label": feature})
    return prepare(datasets.Dataset.from_dict(columns, features), "rows.csv", str(models / model))["labels"][:].tolist()


@pytest.mark.parametrize(
    ("model", "given_labels", "expected"),
    [
        ("plain", [0, 2, 1], [0, 2, 1]),
        ("plain", [0.0, 2.0, 1.0], [0, 2, 1]),
        ("plain", ["0", "2", "1"], [0, 2, 1]),
        ("named", ["cat", "dog", "cat"], [2, 0, 2]),
        ("two", [True, False], [1, 0]),
        ("truth", [True, False], [0, 1]),
        ("value", [1, 2, 3], [1.0, 2.0, 3.0]),
        ("value", [True, False], [1.0, 0.0]),
        ("values", [[0.5, 2.0]], [[0.5, 2.0]]),
        ("several", [[1, 0, 1], [0, 0, 1]], [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]),
    ],
)
def test_labels_that_can_mean_one_thing_are_taken(models, model, given_labels, expected):
    found = labels_of(models, model, given_labels)
    assert found == expected and type(np.ravel(found)[0].item()) is type(np.ravel(expected)[0].item())


@pytest.mark.parametrize(
    ("model", "given_labels", "words"),
    [
        ("plain", [0, None, 1, None], "2 rows have no label .label., e.g. .1, 3."),
        ("plain", [None, None], "2 rows have no label"),
        ("plain", [0.0, float("nan")], "1 rows have no label .label., e.g. .1."),
        ("plain", [0.0, 1.5], "label='label': row 1 holds '1.5', no class"),
        ("plain", [0, 3, 7], "outside the model's 3 classes, e.g. .3, 7. .row 1."),
        ("named", [0, -1], r"outside the model's 3 classes, e.g. \[-1\].*'dog', 'eel', 'cat'"),
        ("plain", [True, False], "holds True and False, the model has 3 classes"),
        (
            "named",
            ["cat", "fox"],
            r"has the classes \['cat', 'fox'\], the model has \['dog', 'eel', 'cat'\]: \['fox'\]",
        ),
        ("plain", ["1", "2", "3"], "has the classes .'1', '2', '3'., the model has .'LABEL_0'"),
        ("plain", [[0, 1], [1, 1]], "row 0 holds .*multi_label_classification"),
        ("value", ["high", "low"], "row 0 holds 'high', not a number"),
        ("value", [[1.0], [2.0]], "row 0 holds .*not a number"),
        ("values", [0.5, 1.0], "not a list of 2 numbers"),
        ("several", [[1, 0, 1], [1, 0]], "row 1 holds .*not a list of 3 numbers"),
        ("several", [[1, 0, 1], [1, 0, 5]], "row 1 holds .*not between 0 and 1"),
        ("several", [[1, 0, None]], "1 rows have no label"),
    ],
)
def test_labels_that_cannot_be_used_are_named(models, model, given_labels, words):
    with pytest.raises(ValueError, match=words):
        labels_of(models, model, given_labels)


CELLS = {
    "whole": st.integers(-2, 4),
    "fraction": st.sampled_from([0.0, 1.0, 2.0, 0.5, -1.0, math.nan, math.inf, 1e300]),
    "truth": st.booleans(),
    "name": st.sampled_from([*NAMES, "fox", "", "1", "02", "2.0", "LABEL_1", "True"]),
    "list": st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=3),
    "fractions": st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=2, max_size=3),
}


REMEDIES = ("Leave them out", "Correct the column", "Labels are 0 to", "Give the", "Write the classes")


@given(st.data(), st.sampled_from(sorted(MODELS)), st.sampled_from(sorted(CELLS)), st.booleans())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_any_column_gives_right_labels_or_one_error(models, data, model, kind, holes):
    cell = st.one_of(st.none(), CELLS[kind]) if holes else CELLS[kind]
    values = data.draw(st.lists(cell, min_size=1, max_size=5))
    try:
        found = labels_of(models, model, values)
    except ValueError as error:
        assert "rows.csv" in str(error) and "label" in str(error), "column and file"
        assert any(remedy in str(error) for remedy in REMEDIES), f"a remedy: {error}"
        return
    if model in ("value", "values", "several"):
        assert np.allclose(found, np.asarray(values, dtype=np.float64))
        return
    ids = {name: i for i, name in enumerate(NAMES)} if model == "named" else {"True": 0, "False": 1}
    for value, number in zip(values, found, strict=True):
        assert type(number) is int and 0 <= number < (2 if model in ("two", "truth") else 3)
        if isinstance(value, bool):
            assert number == (ids[str(value)] if model == "truth" else int(value))
        elif isinstance(value, str) and model in ("named", "truth"):
            assert number == ids[value]
        else:
            assert number == int(value.removeprefix("LABEL_") if isinstance(value, str) else value)


FOLDER = st.one_of(
    st.integers(0, 12).map(str),
    st.integers(0, 12).map(lambda n: f"class{n}"),
    st.sampled_from([*NAMES, "07", "2"]),
    st.text(string.ascii_lowercase, min_size=1, max_size=3),
)


@given(st.sets(FOLDER, min_size=1, max_size=12), st.integers(2, 12), st.booleans())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_layout_of_folders_gives_right_numbers_or_one_error(models, folders, count, named):
    """A reader numbers class folders by the alphabet: "10" comes before "2"."""
    names = sorted(folders)
    options = {"num_labels": count} if not named else MODELS["named"]
    BertConfig(architectures=["BertForSequenceClassification"], **options).save_pretrained(models / "any")
    try:
        found = labels_of(models, "any", list(range(len(names))), datasets.ClassLabel(names=names))
    except ValueError as error:
        assert "rows.csv" in str(error) and "Give the model's config the names" in str(error)
        return
    if named:
        assert [NAMES[number] for number in found] == names
    elif all(name.isdigit() for name in names):
        assert found == [int(name) for name in names]
    else:
        assert found == list(range(len(names))) and len(names) == count
        digits = [int(name[5:]) for name in names if name[:5] == "class" and name[5:].isdigit()]
        assert digits == sorted(digits), "class10 before class2: refused"


def test_class_folders_that_are_numbers_are_read_by_their_value(tmp_path):
    names = [str(n) for n in range(11)]
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=11)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "model")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "model")
    for name in names:
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (int(name) * 20,) * 3).save(tmp_path / "data" / name / "a.png")
    spec = str(tmp_path / "data")
    data = prepare(read_table(spec), spec, str(tmp_path / "model"), images="memory")
    shades = [round((float(data[i]["pixel_values"].mean()) * 0.5 + 0.5) * 255 / 20) for i in range(11)]
    assert [int(data[i]["labels"]) for i in range(11)] == shades
    (tmp_path / "data" / "9").rename(tmp_path / "data" / "19")
    with pytest.raises(ValueError, match="'19'.* cannot be told. Give the model's config the names"):
        prepare(read_table(spec), spec, str(tmp_path / "model"))


def test_labels_in_the_numbers_of_another_model(models, tmp_path):
    classifier(tmp_path / "other", ["cat", "dog", "eel"])
    table = datasets.Dataset.from_dict({"text": ["good", "bad"], "label": ["eel", "cat"]})
    own = prepare(table, "t", str(tmp_path / "other"))["labels"]
    assert list(own) == [2, 0]
    assert list(prepare(table, "t", str(tmp_path / "other"), labels_of=str(models / "named"))["labels"]) == [1, 2]
