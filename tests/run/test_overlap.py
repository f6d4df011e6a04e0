"""Samples that sets share by content, whatever holds them: found, counted, refused or said."""

import io

import numpy as np
import pytest
import torch
from optional_packages import datasets
from parts import Mlp, rows
from PIL import Image
from torch.utils.data import TensorDataset

from hf_sharp_unlearn import ImagesInMemory, NegGradPlus
from hf_sharp_unlearn.data import contents_of, shared
from hf_sharp_unlearn.run.overlap import overlaps


def as_list(values):
    return [{"x": torch.tensor([float(v)] * 3), "labels": i} for i, v in enumerate(values)]


def as_tuples(values):
    return TensorDataset(torch.tensor(values).float()[:, None], torch.arange(len(values)))


def as_table(values):
    return datasets.Dataset.from_dict({"x": [[float(v)] * 3 for v in values], "labels": list(range(len(values)))})


def as_texts(values):
    columns = {"id": list(range(len(values))), "text": [f"text {v}" for v in values], "label": list(range(len(values)))}
    return datasets.Dataset.from_dict(columns)


def as_pictures(values):
    def png(value):
        Image.new("RGB", (4, 4), (value, 0, 0)).save(file := io.BytesIO(), "PNG")
        return {"bytes": file.getvalue(), "path": f"{np.random.random()}.png"}

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict(
        {"image": [png(v) for v in values], "label": list(range(len(values)))}, features
    ).with_transform(lambda batch: {"pixel_values": batch["image"], "labels": batch["label"]})


def in_memory(values):
    pixels = torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2).contiguous()
    return ImagesInMemory(pixels, torch.arange(len(values)))


KINDS = [as_list, as_tuples, as_table, as_texts, as_pictures, in_memory]


@pytest.mark.parametrize("make", KINDS)
def test_equal_inputs_are_found_under_other_labels_and_at_other_places(make):
    one, other = contents_of(make([5, 1, 7, 7])), contents_of(make([9, 7, 2, 5]))
    assert shared(one, other).tolist() == [0, 2, 3] and one.whole
    assert shared(one, contents_of(make([2, 4]))).tolist() == []


@pytest.mark.parametrize("make", [as_table, as_texts])
def test_rows_that_were_selected_are_those_that_are_compared(make):
    whole = make(list(range(10)))
    one, other = whole.select([8, 2, 4]), whole.select([1, 2, 3])
    assert shared(contents_of(one), contents_of(other)).tolist() == [1]
    assert len(contents_of(make([]).select([])).numbers) == 0 if make is as_table else True


def test_what_the_model_takes_counts_and_nothing_else():
    one = [{"x": torch.ones(2), "name": "a", "labels": 0}]
    other = [{"x": torch.ones(2), "name": "b", "labels": 1}]
    assert shared(contents_of(one, ["x", "labels"], ["labels"]), contents_of(other, ["x", "labels"])).tolist() == [0]
    assert shared(contents_of(one), contents_of(other)).tolist() == []


def test_augmentation_does_not_make_two_of_one_and_draws_nothing_from_the_run():
    class Augmented:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return {"x": torch.tensor([1.0]) + torch.rand(1), "labels": 0}

    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    assert len(set(contents_of(Augmented()).numbers.tolist())) == 1
    assert torch.rand(1) == expected


def test_a_set_that_is_slow_is_compared_as_far_as_time_allows_and_that_is_said(monkeypatch):
    found = contents_of(as_list(range(100)), seconds=-1.0)
    assert not found.whole and found.total == 100 and len(found.numbers) == 0
    monkeypatch.setattr("hf_sharp_unlearn.run.overlap.contents_of", lambda d, *a: contents_of(d)._replace(total=50))
    (overlap,) = overlaps({"forget": as_list([1, 2]), "retain": as_list([2, 3, 4])})
    assert overlap.describe() == (
        "1 of 50 samples of the forget set are in the retain set too (identical inputs, rows 1; compared: the first 2 "
        "with the first 3 of 50)"
    )
    assert "rows" not in overlap.describe(rows=False)


def test_a_forget_set_that_is_retained_whole_is_refused_when_training_begins(make_trainer):
    data = rows(24)
    trainer = make_trainer(
        NegGradPlus(0.8), data=data, trainer={"forget_dataset": data[:4], "retain_dataset": list(data)}
    )
    before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    with pytest.raises(ValueError, match="forget_dataset, retain_dataset: 4 of 4 samples .* split_forget"):
        trainer.train()
    assert all(torch.equal(before[name], weight) for name, weight in trainer.model.state_dict().items())


def test_a_part_that_is_shared_is_said_and_stands_on_the_card_without_rows(make_trainer, caplog):
    data = rows(24)
    sets = {"forget_dataset": data[:4], "retain_dataset": data[3:], "eval_dataset": data[20:]}
    trainer = make_trainer(NegGradPlus(0.8), model=Mlp(), data=data, max_steps=1, trainer=sets)
    trainer.train()
    assert "1 of 4 samples of the forget set are in the retain set too (identical inputs, rows 3)" in caplog.text
    assert "of the retain set are in the test set too" in caplog.text
    trainer.create_model_card()
    with open(f"{trainer.args.output_dir}/README.md") as file:
        card = file.read()
    assert "1 of 4 samples of the forget set are in the retain set too (identical inputs)." in card
    assert "rows 3" not in card


@pytest.mark.parametrize("make", [as_list, as_table, as_texts, as_pictures, as_tuples, in_memory])
def test_with_labels_an_input_under_another_label_is_another_sample(make):
    """Labels are the places here."""
    one, other = make([5, 1, 7]), make([5, 7, 1])
    assert shared(contents_of(one), contents_of(other)).tolist() == [0, 1, 2]
    assert shared(contents_of(one, labelled=True), contents_of(other, labelled=True)).tolist() == [0]
    assert shared(contents_of(one, labelled=True), contents_of(make([5, 1]), labelled=True)).tolist() == [0, 1]


def test_rows_that_are_labels_and_nothing_else_are_not_compared():
    """A transform makes the inputs, of something that the table does not hold."""
    table = datasets.Dataset.from_dict({"label": [0, 1, 1]})
    assert overlaps({"forget": table, "retain": table, "test": [{"labels": 0}] * 3}) == []


def test_a_forget_set_that_is_retained_under_other_labels_is_said_and_trained(make_trainer, caplog):
    """Wrong labels are forgotten, right ones retained."""
    data = rows(24)
    wrong = [{**row, "labels": (row["labels"] + 1) % 3} for row in data[:4]]
    trainer = make_trainer(
        NegGradPlus(0.8), data=data, max_steps=1, trainer={"forget_dataset": wrong, "retain_dataset": list(data)}
    )
    trainer.train()
    assert [overlap.whole for overlap in trainer.overlaps] == [True]


def test_equal_rows_of_one_table_are_said_and_trained(make_trainer):
    data = rows(12) * 2
    trainer = make_trainer(NegGradPlus(0.8), data=data, forget=range(4), max_steps=1)
    trainer.train()
    assert [(overlap.second, overlap.whole) for overlap in trainer.overlaps] == [("retain", True)]
