"""Bad input: one clear error that names the argument, the value and the remedy, before any work."""

import pytest
import torch
from optional_packages import datasets
from parts import Mlp, rows, timm_resnet
from torch.utils.data import IterableDataset, Subset
from transformers import TrainingArguments

from hf_sharp_unlearn import ASAM, SAM, NegGradPlus, SharpMinMax, UnlearningArguments, UnlearningTrainer, split_forget


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NegGradPlus(alpha=1.2), ["alpha", "1.2", "[0, 1]"]),
        (lambda: NegGradPlus(alpha=float("nan")), ["alpha", "nan"]),
        (lambda: NegGradPlus(alpha="0.9"), ["alpha", "0.9"]),
        (lambda: SharpMinMax(alpha=-0.1, overlap=False), ["alpha", "-0.1"]),
        (lambda: SAM(rho=-1), ["rho", "-1"]),
        (lambda: SAM(rho=float("inf")), ["rho", "inf"]),
        (lambda: ASAM(rho=-0.5), ["rho", "-0.5"]),
        (lambda: ASAM(eta=-0.5), ["eta", "-0.5"]),
        (lambda: SharpMinMax(fraction=0, overlap=False), ["fraction", "0", "(0, 1)"]),
        (lambda: SharpMinMax(fraction=1.0, overlap=False), ["fraction", "1.0"]),
        (lambda: SharpMinMax(scope="half", overlap=False), ["scope", "half", "part", "all"]),
        (lambda: SharpMinMax(lam_retain=-1, overlap=False), ["lam_retain", "-1"]),
        (lambda: NegGradPlus(sharpness_on="test"), ["sharpness_on", "test"]),
        (lambda: NegGradPlus(sharpness=0.1), ["sharpness", "0.1", "SAM"]),
        (lambda: NegGradPlus(forget_loss=3), ["forget_loss", "3", "callable"]),
        (lambda: UnlearningArguments("x", forget_batch_size=0), ["forget_batch_size", "0"]),
        (lambda: UnlearningArguments("x", load_best_model_at_end=True), ["metric_for_best_model"]),
        (lambda: split_forget(rows(5), []), ["forget_indices", "empty"]),
        (lambda: split_forget(rows(5), [1, 1]), ["forget_indices", "repeats", "1"]),
        (lambda: split_forget(rows(5), [1, 5]), ["forget_indices", "5", "0 to 4"]),
        (lambda: split_forget(rows(5), [-1]), ["forget_indices", "-1"]),
        (lambda: split_forget(rows(5), [True, False]), ["forget_indices", "flatnonzero"]),
        (lambda: split_forget(rows(5), [0.5]), ["forget_indices", "integers"]),
        (lambda: split_forget(rows(3), [0, 1, 2]), ["forget_indices", "retain"]),
        (lambda: split_forget(rows(5), [0, 1], [1, 2]), ["overlap", "1"]),
        (lambda: split_forget(rows(5), 3), ["forget_indices", "flat sequence"]),
        (lambda: split_forget(Endless(), [3]), ["Endless", "map-style"]),
    ],
)
def test_values(make, words):
    with pytest.raises(ValueError) as raised:
        make()
    for word in words:
        assert word in str(raised.value)


class Endless(IterableDataset):
    def __iter__(self):
        yield from rows(1)


SUBSETS = rows(10)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "sharp_max"}, ["method", "sharp_max", "sharp_minmax", "neggrad"]),
        ({"trainer": {"train_dataset": rows(3)}}, ["train_dataset", "retain_dataset", "split_forget"]),
        ({"trainer": {"forget_dataset": None}}, ["forget_dataset", "None"]),
        ({"trainer": {"forget_dataset": []}}, ["forget_dataset", "empty"]),
        ({"trainer": {"retain_dataset": None}}, ["retain_dataset", "None"]),
        ({"trainer": {"retain_dataset": Endless()}}, ["retain_dataset", "Endless", "map-style"]),
        (
            {"trainer": {"forget_dataset": Subset(SUBSETS, [1, 2]), "retain_dataset": Subset(SUBSETS, [2, 3])}},
            ["overlap", "[2]"],
        ),
        ({"optim": "lomo"}, ["optim", "lomo"]),
        ({"optim": "galore_adamw_layerwise"}, ["optim", "layerwise"]),
        ({"train_sampling_strategy": "batch_rebalance"}, ["train_sampling_strategy", "batch_rebalance"]),
        ({"full_precision_sharpness": True, "torch_compile": True}, ["full_precision_sharpness", "torch_compile"]),
        ({"accelerator_config": {"split_batches": True}}, ["split_batches"]),
        ({"load_best_model_at_end": True, "metric_for_best_model": "loss", "eval_strategy": "epoch",
          "save_strategy": "epoch"}, ["metric_for_best_model", "loss", "forget", "retain"]),
        ({"model": Mlp(dtype=torch.bfloat16)}, ["bfloat16", "float32"]),
        ({"model": Mlp().requires_grad_(False)}, ["no trainable parameter"]),
        ({"data": [{"image": row["x"], "labels": row["labels"]} for row in rows(24)]}, ["image", "forward"]),
        ({"data": [{"x": row["x"]} for row in rows(24)]}, ["label", "dataset"]),
    ],
)  # fmt: skip
def test_trainer_arguments(make_trainer, settings, words):
    settings = {"method": SharpMinMax(overlap=False), **settings}
    with pytest.raises(ValueError) as raised:
        make_trainer(**settings)
    for word in words:
        assert word in str(raised.value)


def test_plain_training_arguments_are_refused(tmp_path):
    forget, retain = split_forget(rows(9), [0])
    with pytest.raises(ValueError, match="UnlearningArguments"):
        UnlearningTrainer(
            Mlp(), TrainingArguments(str(tmp_path)), method="neggrad", forget_dataset=forget, retain_dataset=retain
        )


def test_deepspeed_and_fsdp_are_refused_with_the_remedy(make_trainer, tmp_path, monkeypatch):
    from hf_sharp_unlearn.run import checks

    for name, value in (("deepspeed", {"zero_optimization": {"stage": 2}}), ("fsdp", "full_shard")):
        args = UnlearningArguments(str(tmp_path))
        setattr(args, name, value)  # what TrainingArguments holds where the launcher and the package are there
        with pytest.raises(ValueError, match=f"{name}=.*DistributedDataParallel"):
            checks.check_arguments(args, None, NegGradPlus())


@pytest.mark.parametrize("kind", ["list", "subset", "datasets"])
def test_labels_outside_the_models_classes(tmp_path, kind):
    x = torch.zeros(1, 8, 8).tolist()
    data = [{"pixel_values": torch.tensor(x), "label": label} for label in (0, 1, 2, 3, 1, 2)]
    if kind == "datasets":
        data = datasets.Dataset.from_dict({"pixel_values": [x] * 6, "label": [0, 1, 2, 3, 1, 2]})
    forget, retain = split_forget(data, [0, 1])
    if kind == "list":
        forget, retain = data[:2], data[2:]
    arguments = UnlearningArguments(str(tmp_path), report_to="none")
    with pytest.raises(ValueError, match=r"retain_dataset.*'label'.*3 classes.*\[3\]"):
        UnlearningTrainer(
            timm_resnet(classes=3), arguments, method="neggrad", forget_dataset=forget, retain_dataset=retain
        )


def test_a_multi_gpu_process_is_refused(make_trainer, monkeypatch):
    from transformers.training_args import ParallelMode

    monkeypatch.setattr(UnlearningArguments, "parallel_mode", property(lambda self: ParallelMode.NOT_DISTRIBUTED))
    with pytest.raises(ValueError, match="torchrun"):
        make_trainer(SharpMinMax(overlap=False))


def test_alpha_without_effect_is_said_once_with_the_reason(make_trainer, recwarn):
    trainer = make_trainer(SharpMinMax(0.8, overlap=False), optim="adamw_torch")
    with pytest.warns(UserWarning, match="AdamW.*scale of the gradient.*alpha=0.8 has no effect") as caught:
        trainer.train()
    assert sum("no effect" in str(warning.message) for warning in caught) == 1
    recwarn.clear()
    for method, optim in ((SharpMinMax(0.8, overlap=False), "sgd"), (SharpMinMax(0.8, overlap=True), "adamw_torch"),
                          (NegGradPlus(0.8), "adamw_torch")):  # fmt: skip
        make_trainer(method, optim=optim).train()
    assert not [warning for warning in recwarn if "no effect" in str(warning.message)]


@pytest.mark.filterwarnings("ignore:AdamW makes its steps")
def test_under_adam_alpha_has_indeed_no_effect(make_trainer):
    """The claim of the warning: disjoint parts under AdamW: alpha changes next to nothing; under SGD it does."""
    for optim, same in (("adamw_torch", True), ("sgd", False)):
        ends = []
        for alpha in (0.5, 0.9):
            trainer = make_trainer(
                SharpMinMax(alpha, overlap=False), optim=optim, learning_rate=0.01, max_grad_norm=0, max_steps=5
            )
            trainer.train()
            ends.append(torch.cat([weight.detach().reshape(-1) for weight in trainer.model.parameters()]))
        moved = (ends[0] - torch.cat([weight.detach().reshape(-1) for weight in Mlp().parameters()])).norm()
        assert ((ends[0] - ends[1]).norm() < 1e-3 * moved) == same


def test_methods_that_need_one_set_run_without_the_other(make_trainer):
    for alpha, missing in ((1.0, "forget"), (0.0, "retain")):
        for sharpness in (None, SAM(0.1)):
            trainer = make_trainer(NegGradPlus(alpha, sharpness), trainer={f"{missing}_dataset": None})
            trainer.train()
            metrics = trainer.evaluate()
            assert not any(key.startswith(f"eval_{missing}") for key in metrics)


def test_sets_that_share_rows_are_found_whatever_they_were_made_with(make_trainer):
    data = rows(12)
    table = datasets.Dataset.from_dict({"x": [r["x"].tolist() for r in data], "labels": [r["labels"] for r in data]})
    pairs = [
        (Subset(data, [1, 2]), Subset(data, [2, 3]), "overlap"),
        (Subset(data, [1, -1]), Subset(data, [3, 11]), "overlap"),
        (Subset(Subset(data, [5, 6, 7]), [0, 1]), Subset(data, [6]), "overlap"),
        (Subset(data, [1, 1]), Subset(data, [3]), "twice"),
        (Subset(data, [12]), Subset(data, [3]), "out of range"),
        (table.select([1, 4]), table.select([4, 7]), "overlap"),
        (table.select([1, 4]), table, "overlap"),
        (table.select(range(2, 5)), table.select([4, 1]), "overlap"),
    ]
    for forget, retain, word in pairs:
        with pytest.raises(ValueError, match=word):
            make_trainer(NegGradPlus(), trainer={"forget_dataset": forget, "retain_dataset": retain})
    for forget, retain in ((table.select([1, 4]), table.select([5, 7])), (Subset(data, [0, -1]), Subset(data, [1]))):
        make_trainer(NegGradPlus(), trainer={"forget_dataset": forget, "retain_dataset": retain})


def test_labels_that_are_no_class_indices_are_not_judged(make_trainer, tmp_path):
    """A question answering head has positions, a transform may remap labels, one output is a regression."""
    from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    ids = torch.tensor([1, 2, 3, 4])
    answers = [{"input_ids": ids, "start_positions": 2, "end_positions": 3}] * 12
    make_trainer(
        NegGradPlus(0.8), model=BertForQuestionAnswering(BertConfig(**sizes)), data=answers, max_steps=1
    ).train()
    scores = [{"input_ids": ids, "labels": float(i)} for i in range(12)]
    model = BertForSequenceClassification(BertConfig(**sizes, num_labels=1))
    make_trainer(NegGradPlus(0.8), model=model, data=scores, max_steps=1).train()

    table = datasets.Dataset.from_dict({"label": [10, 11, 12] * 4})

    def remap(batch):
        return {"labels": [v - 10 for v in batch["label"]], "pixel_values": [torch.rand(1, 8, 8)] * len(batch["label"])}

    make_trainer(NegGradPlus(0.8), model=timm_resnet(), data=table.with_transform(remap), max_steps=1).train()


def test_a_sample_that_does_not_collate_is_refused_with_the_name_of_its_set(make_trainer):
    pairs = [(torch.rand(6), 1)] * 12
    with pytest.raises(ValueError, match="retain_dataset.*tuple.*data_collator"):
        make_trainer(NegGradPlus(), data=pairs)


def test_a_model_sharded_at_load_is_refused(make_trainer):
    model = Mlp()
    model._tp_size = 2
    with pytest.raises(ValueError, match="tensor- or context-parallel"):
        make_trainer(NegGradPlus(), model=model)


def test_a_loss_of_the_wrong_shape_is_refused_and_a_mean_of_shape_one_is_a_mean(make_trainer):
    def per_token(outputs, inputs):
        return torch.ones(17, requires_grad=True)

    with pytest.raises(ValueError, match=r"forget loss has shape \(17,\) for a batch of 4"):
        make_trainer(NegGradPlus(0.8, forget_loss=per_token), max_steps=1).train()

    def logged(shape):
        def loss(outputs, inputs):
            return outputs["loss"].reshape(shape)

        method = NegGradPlus(0.8, retain_loss=loss)
        trainer = make_trainer(method, max_steps=1, logging_strategy="steps", logging_steps=1)
        trainer.train()
        return trainer.state.log_history[0]["loss_retain"]

    assert logged(()) == logged((1,))


def test_freezing_a_parameter_during_a_run_is_refused(make_trainer):
    from transformers import TrainerCallback

    class Freeze(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            model.first.requires_grad_(False)

    trainer = make_trainer(SharpMinMax(overlap=False))
    trainer.add_callback(Freeze())
    with pytest.raises(ValueError, match="first.bias.*requires_grad"):
        trainer.train()


def test_numbers_of_numpy_are_numbers():
    import numpy as np

    assert SAM(np.float32(0.5)).rho == 0.5 and NegGradPlus(np.float64(0.5)).alpha == 0.5


def test_signatures_are_the_documented_ones():
    import inspect

    def shown(kind):
        named = [p for p in inspect.signature(kind).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        return [(p.name, p.default) for p in named]

    assert shown(SAM) == [("rho", 0.1)]
    assert shown(ASAM) == [("rho", 1.0), ("eta", 0.0), ("adapt_1d", True)]
    assert shown(NegGradPlus) == [("alpha", 0.97), ("sharpness", None), ("sharpness_on", "both")]
    assert shown(SharpMinMax) == [
        ("alpha", 0.97),
        ("sharpness", ASAM(rho=1.0)),
        ("fraction", 0.3),
        ("scope", "part"),
        ("overlap", True),
        ("lam_retain", 1.0),
        ("lam_forget", 1.0),
    ]
    for method in (NegGradPlus, SharpMinMax):
        assert {"forget_loss", "retain_loss"} <= inspect.signature(method).parameters.keys()
