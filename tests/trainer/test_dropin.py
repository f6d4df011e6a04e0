"""A script that works with Trainer works with UnlearningTrainer: what is called, with what, and what comes back."""

import copy

import numpy as np
import pytest
import torch
from optional_packages import datasets
from parts import Mlp, assert_same, assert_same_updates, differs, rows, weights_of
from torch import nn
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
from transformers.trainer_utils import default_compute_objective

from hf_sharp_unlearn import FineTune, NegGradPlus, UnlearningArguments, UnlearningTrainer
from hf_sharp_unlearn.run import default_objective

SETTINGS = {
    "use_cpu": True,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "optim": "sgd",
    "learning_rate": 0.1,
    "lr_scheduler_type": "constant",
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
}
TRAIN, TEST = rows(22), rows(9, seed=1)


def plain(folder, kind=Trainer, data=TRAIN, model=None, trainer=None, **settings):
    model = {} if "model_init" in (trainer or {}) else {"model": Mlp() if model is None else model}
    args = TrainingArguments(str(folder), **{**SETTINGS, "optim_args": None, **settings})
    return kind(**model, args=args, train_dataset=data, eval_dataset=TEST, **(trainer or {}))


def unlearning(folder, kind=UnlearningTrainer, data=TRAIN, model=None, trainer=None, **settings):
    model = {} if "model_init" in (trainer or {}) else {"model": Mlp() if model is None else model}
    args = UnlearningArguments(str(folder), **{**SETTINGS, "optim_args": "momentum=0", **settings})
    extra = {"eval_dataset": TEST, **(trainer or {})}
    return kind(**model, args=args, method=FineTune(), retain_dataset=data, **extra)


def both(folder, mixin=None, **options):
    """The same script with either class."""
    classes = [type("Own", (mixin, base), {}) if mixin else base for base in (Trainer, UnlearningTrainer)]
    return plain(folder / "plain", classes[0], **options), unlearning(folder / "own", classes[1], **options)


# ---- losses of the user's ----


def summed(outputs, labels, num_items_in_batch):
    return nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize("accumulation", [1, 3])
def test_compute_loss_func_gets_the_number_of_items_and_trains_as_with_trainer(tmp_path, accumulation):
    """A sum over a number of items: of the window with Trainer, of the micro-batch here, the same mean in the end."""
    options = {"trainer": {"compute_loss_func": summed}, "gradient_accumulation_steps": accumulation}
    one, other = both(tmp_path, **options)
    assert one.train().training_loss == pytest.approx(other.train().training_loss, rel=1e-5)
    assert_same_updates(weights_of(other.model), weights_of(one.model), weights_of(Mlp()))


def test_an_override_of_compute_loss_gets_the_number_of_items(tmp_path):
    seen = []

    class Own:
        def compute_loss(self, model, inputs, num_items_in_batch, return_outputs=False):  # another order of arguments
            seen.append(int(num_items_in_batch))
            outputs = model(**inputs)
            loss = summed(outputs, inputs["labels"], num_items_in_batch)
            return (loss, outputs) if return_outputs else loss

    trainer = unlearning(tmp_path, type("T", (Own, UnlearningTrainer), {}), num_train_epochs=1)
    trainer.train()
    assert seen == [4, 4, 4, 4, 4, 2]
    seen.clear()
    trainer.evaluate(TEST)
    assert seen == [4, 4, 1]
    reference = unlearning(tmp_path, num_train_epochs=1)
    reference.train()
    assert_same_updates(weights_of(trainer.model), weights_of(reference.model), weights_of(Mlp()))


def test_an_override_without_that_argument_works_too(tmp_path):
    class Old(UnlearningTrainer):
        def compute_loss(self, model, inputs, return_outputs=False):
            outputs = model(**inputs)
            return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    trainer, reference = unlearning(tmp_path, Old), unlearning(tmp_path)
    trainer.train(), reference.train()
    assert_same(weights_of(trainer.model), weights_of(reference.model))


def test_a_causal_lms_override_counts_shifted_tokens(tmp_path):
    seen = []

    class Own(UnlearningTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            seen.append(int(num_items_in_batch))
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_embd=8, n_layer=1, n_head=1, n_positions=8))
    tokens = [{"input_ids": [3, 4, 5, 6], "labels": [3, 4, -100, 6]} for _ in range(4)]
    unlearning(tmp_path, Own, data=tokens, model=model, num_train_epochs=1, trainer={"eval_dataset": None}).train()
    assert seen == [4 * 2], "of four labels the first is no target and one is masked"


def test_columns_for_compute_loss_are_not_refused(tmp_path):
    class Weighted:
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            weight, labels = inputs.pop("weight"), inputs.pop("labels")
            outputs = model(**inputs)
            losses = nn.functional.cross_entropy(outputs["logits"], labels, reduction="none")
            loss = (weight * losses).mean()
            return (loss, outputs) if return_outputs else loss

    data = [{**row, "weight": 1.0 + i % 2} for i, row in enumerate(TRAIN)]
    one, other = both(tmp_path, Weighted, data=data, remove_unused_columns=False)
    one.train(), other.train()
    assert_same(weights_of(one.model), weights_of(other.model))
    with pytest.raises(ValueError, match=r"forward does not take \['weight'\]"):
        unlearning(tmp_path, data=data, remove_unused_columns=False)


# ---- evaluation, prediction, search ----


def test_predict_returns_logits_as_trainer_does(tmp_path):
    one, other = both(tmp_path)
    a, b = one.predict(TEST), other.predict(TEST)
    assert b.predictions.shape == (9, 3) and b.predictions.dtype == np.float32
    np.testing.assert_array_equal(a.predictions, b.predictions)
    assert set(a.metrics) - {"test_model_preparation_time"} <= set(b.metrics) and "test_accuracy" not in b.metrics
    assert "eval_retain_accuracy" in other.evaluate(), "an evaluation has the accuracy"
    assert other.compute_metrics is None and other.preprocess_logits_for_metrics is None
    other.compute_metrics = lambda prediction: {"width": prediction.predictions.shape[1]}
    assert other.evaluate()["eval_test_width"] == 3, "metrics that are set later get logits"


def test_the_only_test_set_is_logged_under_the_names_that_trainer_uses(tmp_path):
    one, other = both(tmp_path)
    expected, found = one.evaluate(), other.evaluate()
    timing = ("runtime", "per_second", "model_preparation_time")
    for key, value in expected.items():
        assert key in found and (key.endswith(timing) or found[key] == value), key
    entry = next(entry for entry in other.state.log_history if "eval_test_loss" in entry)
    assert entry["eval_loss"] == entry["eval_test_loss"] == expected["eval_loss"]
    assert not any("eval_loss" in entry for entry in other.state.log_history if "eval_retain_loss" in entry)
    assert found["eval_accuracy"] == found["eval_test_accuracy"]
    named = unlearning(tmp_path, trainer={"eval_dataset": {"test": TEST}})
    assert "eval_loss" not in named.evaluate(), "a dict names its splits"
    assert other.evaluate(metric_key_prefix="late")["late_loss"] == other.evaluate()["eval_test_loss"]


def test_eval_loss_may_choose_the_best_model(tmp_path):
    best = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    one, other = both(tmp_path, metric_for_best_model="eval_loss", **best)
    one.train(), other.train()
    assert one.state.best_metric == other.state.best_metric
    assert one.state.best_global_step == other.state.best_global_step
    with pytest.raises(ValueError, match="metric_for_best_model='eval_loss' is not reported"):
        unlearning(tmp_path, trainer={"eval_dataset": None}, metric_for_best_model="eval_loss", **best)


@pytest.mark.parametrize("name", ["forget", "retain"])
def test_a_split_does_not_take_the_place_of_a_set(tmp_path, name):
    with pytest.raises(ValueError, match=rf"eval_dataset has the split\(s\) \['{name}'\].*other names"):
        unlearning(tmp_path, trainer={"eval_dataset": {name: TEST, "test": TEST}})


def test_a_search_minimises_what_trainer_would(tmp_path):
    trainer = unlearning(tmp_path)
    metrics = trainer.evaluate()
    assert default_objective(["retain", "test"], True, False)(copy.copy(metrics)) == metrics["eval_loss"]
    own = unlearning(tmp_path, trainer={"compute_metrics": lambda _: {"a": 2.0, "b": 0.5}})
    reference = plain(tmp_path, trainer={"compute_metrics": lambda _: {"a": 2.0, "b": 0.5}})
    expected = reference.evaluate()
    expected = default_compute_objective({k: v for k, v in expected.items() if not k.endswith("preparation_time")})
    found = own.evaluate()
    found = {k: v for k, v in found.items() if not k.endswith("preparation_time")}
    assert default_objective(["retain", "test"], True, True)(found) == expected == 2.5
    several = unlearning(tmp_path, trainer={"eval_dataset": {"a": TEST, "b": TEST}, "model_init": lambda: Mlp()})
    with pytest.raises(ValueError, match=r"compute_objective=None.*\['retain', 'a', 'b'\].*Pass compute_objective"):
        several.hyperparameter_search()


# ---- arguments, seeds, loaders ----


def test_the_callers_arguments_stay_as_they_are(tmp_path):
    args = UnlearningArguments(str(tmp_path), **{**SETTINGS, "use_cpu": False})
    args.dataloader_pin_memory = True
    before = copy.deepcopy(args.to_dict())
    trainer = UnlearningTrainer(Mlp(), args, method=FineTune(), retain_dataset=TRAIN, eval_dataset=TEST)
    assert trainer.args is args
    trainer.train(), trainer.evaluate(), trainer.predict(TEST), trainer.save_model()
    assert trainer.args is args and args.to_dict() == before


def order_of(trainer):
    seen, inner = [], trainer.training_step
    trainer.training_step = lambda model, inputs, *rest: (
        seen.append(inputs.get("retain", inputs)["x"][:, 0].tolist()),
        inner(model, inputs, *rest),
    )[1]
    trainer.train()
    trainer.training_step = inner
    return seen


def test_a_seed_that_is_changed_between_two_runs_changes_the_order(tmp_path):
    """As searches over seeds do it."""
    for make in (plain, unlearning):
        trainer = make(tmp_path, trainer={"model_init": lambda: Mlp()})
        first, same = order_of(trainer), order_of(trainer)
        trainer.args.seed = 314
        other = order_of(trainer)
        assert first == same != other
        assert other == order_of(make(tmp_path, trainer={"model_init": lambda: Mlp()}, seed=314))


def test_the_train_loader_tells_its_batch_size(tmp_path):
    one, other = both(tmp_path)
    assert other.get_train_dataloader().total_batch_size == one.get_train_dataloader().total_batch_size == 4
    args = UnlearningArguments(str(tmp_path), **SETTINGS, forget_batch_size=2)
    sets = {"forget_dataset": rows(5), "retain_dataset": rows(9)}
    trainer = UnlearningTrainer(Mlp(), args, method=NegGradPlus(0.8), **sets)
    assert trainer.get_train_dataloader().total_batch_size == 4, "of the retain set, as its epochs are counted"


def test_a_loader_of_another_kind_is_refused_by_name_and_a_wrapped_one_is_served(tmp_path):
    class Other(UnlearningTrainer):
        def get_train_dataloader(self):
            return self.accelerator.prepare(DataLoader(TRAIN, batch_size=8))

    trainer = unlearning(tmp_path, Other)
    start = weights_of(trainer.model)
    with pytest.raises(ValueError, match=r"get_train_dataloader\(\) returned a loader whose batches are made by"):
        trainer.train()
    assert_same(start, weights_of(trainer.model))

    class Looking(UnlearningTrainer):
        def get_train_dataloader(self):
            self.loader = super().get_train_dataloader()
            return self.loader

    trainer = unlearning(tmp_path, Looking)
    trainer.train()
    assert differs(start, weights_of(trainer.model)) and len(trainer.loader) == 6


@pytest.mark.parametrize("make_data", [list, lambda rows: datasets.Dataset.from_list(rows)], ids=["list", "table"])
def test_group_by_length_has_trainers_order(tmp_path, make_data):
    """In every epoch, as long as nothing else draws from the generator."""
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=16, n_embd=8, n_layer=1, n_head=1, n_positions=16, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
        )
    )
    tokens = make_data([{"input_ids": [3 + i % 9] * (2 + i * 7 % 11)} for i in range(23)])

    def collate(items):
        longest = max(len(item["input_ids"]) for item in items)
        ids = torch.tensor([item["input_ids"] + [0] * (longest - len(item["input_ids"])) for item in items])
        return {"input_ids": ids, "labels": ids}

    seen = []
    for make in (plain, unlearning):
        extra = {"data_collator": collate, **({"eval_dataset": None} if make is unlearning else {})}
        strategy = {"train_sampling_strategy": "group_by_length", "num_train_epochs": 3}
        trainer = make(tmp_path, data=tokens, model=copy.deepcopy(model), trainer=extra, **strategy)
        shapes, inner = [], trainer.training_step
        trainer.training_step = lambda model, inputs, *rest, shapes=shapes, inner=inner: (
            shapes.append(inputs.get("retain", inputs)["input_ids"].tolist()),
            inner(model, inputs, *rest),
        )[1]
        trainer.train()
        seen.append(shapes)
    assert seen[0] == seen[1] and len(seen[0]) == 18
