"""Runs that forget nothing, or less than they say: refused, or said in a warning and on the card."""

import warnings

import pytest
import torch
from parts import LLAMA, rows
from text_models import classifier
from torch.utils.data import Dataset, Subset
from transformers import LlamaConfig, LlamaForCausalLM

from hf_sharp_unlearn import NegGradPlus, Scrub, SharpMinMax
from hf_sharp_unlearn.run import no_better_than_chance


def warned_of(trainer, word):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    return [str(entry.message) for entry in caught if word in str(entry.message)]


class Loaded(Dataset):
    """Rows that are known only when they are loaded."""

    def __init__(self, rows):
        self.rows, self.seen = rows, set()

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        self.seen.add(index)
        return dict(self.rows[index])


@pytest.mark.parametrize("kind", [list, Loaded])
@pytest.mark.parametrize("stream", ["forget", "retain"])
def test_a_set_without_a_counted_label_is_refused(make_trainer, kind, stream):
    data = kind([{**row, "labels": -100} for row in rows(5)])
    with pytest.raises(ValueError, match=f"{stream}_dataset: no label counts in any of its 5 samples; all are -100"):
        make_trainer(NegGradPlus(), trainer={f"{stream}_dataset": data})
    some = kind([{**row, "labels": -100 if i < 4 else 1} for i, row in enumerate(rows(5))])
    make_trainer(NegGradPlus(), trainer={f"{stream}_dataset": some}, max_steps=2)


def test_a_prompt_that_was_masked_and_its_answer_cut_off_is_refused(make_trainer):
    """The only label that is left stands first: a causal LM predicts it from nothing."""
    ids = torch.arange(3, 9)
    masked = [{"input_ids": ids, "labels": torch.tensor([3, -100, -100, -100, -100, -100])}] * 3
    whole = [{"input_ids": ids, "labels": ids}] * 8
    model = LlamaForCausalLM(LlamaConfig(**LLAMA))
    with pytest.raises(ValueError, match="forget_dataset: no label counts"):
        make_trainer(NegGradPlus(), model=model, data=whole, forget=[0], trainer={"forget_dataset": masked})


@pytest.mark.parametrize(
    ("method", "settings", "left", "epochs"),
    [
        (NegGradPlus(), {"num_train_epochs": 2, "forget_batch_size": 3}, 9, 4),  # ceil(10 * 3 / 4) an epoch
        (SharpMinMax(overlap=False), {"max_steps": 3}, 15, 3),
        ("gradient_ascent", {"max_steps": 2}, 17, 1),
        ("random_label", {"max_steps": 1}, 21, 1),
        (Scrub(), {"num_train_epochs": 1, "gradient_accumulation_steps": 2}, 0, 1),
    ],
)
def test_forget_rows_that_no_step_uses_are_counted_in_a_warning_and_on_the_card(
    make_trainer, tmp_path, method, settings, left, epochs
):
    """25 forget and 10 retain samples in batches of 4; an epoch is a pass over the retain set, with 10 of them."""
    forget = Loaded(rows(25, seed=1))
    trainer = make_trainer(method, trainer={"forget_dataset": forget, "retain_dataset": rows(10)}, **settings)
    if trainer.method.fraction is not None:
        made = trainer._make_partition()  # it reads every forget sample once, which is not training
        trainer._make_partition = lambda: made
    forget.seen.clear()
    said = warned_of(trainer, "forget samples")
    assert left or len(forget.seen) == 25  # loaders read ahead
    trainer.create_model_card()
    card = (tmp_path / "out" / "README.md").read_text()
    if not left:
        assert not said and "not forgotten" not in card
        return
    assert f"no step of this run uses {left} of the 25 forget samples" in said[0] and f"{epochs} epochs" in said[0]
    assert f"| **not forgotten** | {left} of 25 forget samples: no step of the run used them |" in card


def test_the_remedies_of_the_warning_hold(make_trainer):
    sets = {"forget_dataset": rows(25, seed=1), "retain_dataset": rows(10)}
    assert not warned_of(make_trainer(NegGradPlus(), trainer=sets, num_train_epochs=3), "forget samples")
    found = warned_of(make_trainer(NegGradPlus(), trainer=sets, num_train_epochs=1), "forget_batch_size of 10")
    assert found
    assert not warned_of(
        make_trainer(NegGradPlus(), trainer=sets, num_train_epochs=1, forget_batch_size=10), "forget samples"
    )


def test_a_test_set_that_is_the_forget_set_is_warned_of(make_trainer):
    data = rows(24)
    for eval_dataset in (Subset(data, range(6)), {"later": Subset(data, [5, 4, 3, 2, 1, 0])}):
        with pytest.warns(UserWarning, match="set has the samples of forget_dataset"):
            make_trainer(NegGradPlus(), data=data, trainer={"eval_dataset": eval_dataset})
    make_trainer(NegGradPlus(), data=data, trainer={"eval_dataset": Subset(data, range(7))})


def test_a_model_that_guesses_afterwards_is_said_in_the_log_and_on_the_card(make_trainer, tmp_path, caplog):
    model = classifier(tmp_path / "model", labels=3)
    data = [{"input_ids": torch.tensor([2 + i % 3, 3, 4]), "labels": i % 3} for i in range(12)]
    for row in data:  # what the model is surest not to say
        with torch.no_grad():
            row["labels"] = int(model.eval()(row["input_ids"][None]).logits.argmin())
    trainer = make_trainer(NegGradPlus(), model=model, data=data)
    assert trainer.evaluate()["eval_retain_accuracy"] == 0
    assert "no better than chance on the retain set: accuracy 0, mean loss" in caplog.text
    trainer.create_model_card()
    assert "> **Warning.** The model is no better than chance" in (tmp_path / "out" / "README.md").read_text()
    for metrics in ({"eval_retain_accuracy": 0.5, "eval_retain_loss": 9.0}, {"eval_retain_loss": 9.0}):
        assert no_better_than_chance(metrics, "eval", 4) == []


def test_methods_that_need_classes_refuse_a_model_of_values(make_trainer, tmp_path):
    model = classifier(tmp_path / "values", labels=1)
    data = [{"input_ids": torch.tensor([2, i % 8, i // 8]), "labels": i / 3} for i in range(12)]
    for method in ("random_label", "scrub", "influence"):
        with pytest.raises(ValueError, match="works with classes, and the model has none .regression."):
            make_trainer(method, model=model, data=data)
    trainer = make_trainer("neggrad", model=model, data=data, max_steps=1)
    trainer.train()
    metrics = trainer.evaluate()
    assert "eval_forget_loss" in metrics and "eval_forget_accuracy" not in metrics
    assert "regression" in trainer.evaluate_unlearning().metrics["accuracy"]["unlearned"].reason
