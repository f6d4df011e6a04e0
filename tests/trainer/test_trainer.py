"""Everything of Trainer goes on working: callbacks, schedulers, clipping, evaluation, checkpoints, compile, bf16."""

import os

import pytest
import torch
from optional_packages import datasets
from parts import BatchNormNet, Mlp, assert_same, assert_same_updates, differs, images, rows, timm_resnet, weights_of
from transformers import AutoModelForImageClassification, DefaultDataCollator, TrainerCallback, TrainingArguments

from hf_sharp_unlearn import ASAM, METHODS, SAM, NegGradPlus, SharpMinMax, UnlearningArguments
from hf_sharp_unlearn.step import optim

ALL = [NegGradPlus(0.8), NegGradPlus(0.8, SAM(0.2)), SharpMinMax(0.8, overlap=False)]


def test_defaults_that_differ_from_training_arguments(make_trainer, tmp_path):
    args = UnlearningArguments(str(tmp_path))
    assert (args.optim, args.learning_rate, args.lr_scheduler_type) == ("sgd", 0.01, "constant")
    plain = TrainingArguments(str(tmp_path)).to_dict()
    changed = {key for key, value in args.to_dict().items() if key in plain and plain[key] != value}
    assert changed - {"lr_scheduler_type", "accelerator_config", "logging_nan_inf_filter"} == {
        "optim", "optim_args", "learning_rate",
    }  # fmt: skip
    trainer = make_trainer("sharp_minmax")
    assert trainer.method == SharpMinMax()
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is optim.SGD and optimizer.defaults["momentum"] == 0.9
    assert make_trainer("neggrad", optim_args="momentum=0.5").create_optimizer().defaults["momentum"] == 0.5
    adam = make_trainer("neggrad", optim="adamw_torch").create_optimizer()
    assert type(adam) is torch.optim.AdamW


def test_the_host_waits_for_neither_batches_nor_a_filter_of_losses(tmp_path):
    """Unless fp16 makes losses that are not finite an everyday thing, or memory is not pinned, or the user wishes."""

    def made(**given):
        args = UnlearningArguments(str(tmp_path), **given)
        return args.accelerator_config.non_blocking, args.logging_nan_inf_filter

    assert made() == (True, False)
    assert made(fp16=True) == (True, True)
    assert made(dataloader_pin_memory=False) == made(use_cpu=True) == (False, False)
    assert made(accelerator_config={"even_batches": True}, logging_nan_inf_filter=True) == (False, True)
    assert made(fp16=True, logging_nan_inf_filter=False) == (True, False)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_name_stands_for_the_method_with_its_defaults(make_trainer, name):
    trainer = make_trainer(name)
    start = weights_of(trainer.model)
    trainer.train()
    assert trainer.method == METHODS[name]() and differs(start, weights_of(trainer.model))


class Order(TrainerCallback):
    def __init__(self):
        self.events = []

    def __getattribute__(self, name):
        if name.startswith("on_"):
            return lambda *a, **k: self.events.append(name)
        return super().__getattribute__(name)


@pytest.mark.parametrize("method", ALL, ids=str)
def test_callbacks_come_in_trainers_order(make_trainer, method):
    trainer = make_trainer(method, gradient_accumulation_steps=2, max_steps=1)
    trainer.add_callback(order := Order())
    trainer.train()
    steps = [e for e in order.events if "step" in e]
    assert steps == ["on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end"]


@pytest.mark.parametrize("method", ALL, ids=str)
def test_clipping_acts_on_the_composed_gradient(make_trainer, method):
    """With SGD without momentum the distance moved in a step is lr x min(norm, max_grad_norm)."""
    for limit in (0.01, 1e6):
        trainer = make_trainer(
            method,
            optim_args="momentum=0.0",
            max_steps=1,
            max_grad_norm=limit,
            logging_strategy="steps",
            logging_steps=1,
        )
        start = torch.cat([weight.detach().clone().reshape(-1) for weight in trainer.model.parameters()])
        trainer.train()
        end = torch.cat([weight.detach().reshape(-1) for weight in trainer.model.parameters()])
        norm = trainer.state.log_history[0]["grad_norm"]
        assert (end - start).norm().item() == pytest.approx(0.1 * min(norm, limit), rel=1e-3)
        assert norm > 0.01


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor", "rmsprop"])
@pytest.mark.filterwarnings("ignore:.*makes its steps independent")
def test_optimizers_and_schedules(make_trainer, optim):
    trainer = make_trainer(
        SharpMinMax(0.8, overlap=False), optim=optim, learning_rate=0.01, lr_scheduler_type="cosine", warmup_steps=2
    )
    start = weights_of(trainer.model)
    trainer.train()
    assert differs(start, weights_of(trainer.model))
    assert trainer.lr_scheduler.get_last_lr()[0] < 0.01


def test_an_optimizer_of_the_users_own(make_trainer):
    model = Mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    trainer = make_trainer(SharpMinMax(0.8, overlap=False), model=model, trainer={"optimizers": (optimizer, None)})
    start = weights_of(model)
    trainer.train()
    assert differs(start, weights_of(model))


def test_evaluate_reports_every_split(make_trainer):
    data = rows(40)
    trainer = make_trainer(
        NegGradPlus(0.8), data=data, trainer={"eval_dataset": rows(9, seed=3)}, eval_retain_samples=20
    )
    metrics = trainer.evaluate()
    sizes = {"forget": 6, "retain": 20, "test": 9}
    model = trainer.model.eval()
    for split, size in sizes.items():
        assert metrics[f"eval_{split}_samples"] == size
        chosen = {"forget": data[:6], "test": rows(9, seed=3)}.get(split)
        if chosen:
            x, y = torch.stack([r["x"] for r in chosen]), torch.tensor([r["labels"] for r in chosen])
            output = model(x, y)
            assert metrics[f"eval_{split}_accuracy"] == pytest.approx((output["logits"].argmax(-1) == y).float().mean())
            assert metrics[f"eval_{split}_loss"] == pytest.approx(output["loss"].item(), rel=1e-5)
    again = trainer.evaluate()
    assert all(again[key] == metrics[key] for key in metrics if key.endswith(("loss", "accuracy"))), "a fixed subsample"


def test_a_dict_of_evaluation_sets_is_merged_by_its_keys(make_trainer):
    trainer = make_trainer(NegGradPlus(0.8), trainer={"eval_dataset": {"easy": rows(5), "hard": rows(5, seed=1)}})
    splits = {key.split("_")[1] for key in trainer.evaluate() if key.endswith("_loss")}
    assert splits == {"forget", "retain", "easy", "hard"}


def test_compute_metrics_of_the_users_own_sees_logits(make_trainer):
    shapes = []

    def metrics(prediction):
        shapes.append(prediction.predictions.shape)
        return {"mine": 1.0}

    result = make_trainer(NegGradPlus(0.8), trainer={"compute_metrics": metrics}).evaluate()
    assert result["eval_forget_mine"] == 1.0 and (6, 3) in shapes and "eval_forget_accuracy" not in result


def test_the_best_model_by_a_named_metric_is_loaded_at_the_end(make_trainer):
    trainer = make_trainer(
        NegGradPlus(0.5),
        trainer={"eval_dataset": rows(9, seed=3)},
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_forget_accuracy",
        num_train_epochs=3,
    )
    assert trainer.args.greater_is_better is False, "forgetting well is a low accuracy"
    trainer.train()
    seen = [entry["eval_forget_accuracy"] for entry in trainer.state.log_history if "eval_forget_accuracy" in entry]
    assert trainer.state.best_metric == min(seen) == trainer.evaluate()["eval_forget_accuracy"]


def test_model_init_makes_the_partition_from_the_model_it_makes(make_trainer):
    trainer = make_trainer(SharpMinMax(0.8, overlap=False), trainer={"model_init": lambda: Mlp(seed=4)})
    trainer.train()
    direct = make_trainer(SharpMinMax(0.8, overlap=False), model=Mlp(seed=4))
    direct.train()
    assert_same(weights_of(trainer.model), weights_of(direct.model))
    for name, mask in direct.partition.masks.items():
        assert torch.equal(mask, trainer.partition.masks[name])


def test_compute_loss_func_and_label_smoothing(make_trainer):
    def doubled(outputs, labels, num_items_in_batch=None):
        assert int(num_items_in_batch) == 4, "of the micro-batch"
        return 2 * torch.nn.functional.cross_entropy(outputs["logits"], labels)

    def first_loss(**settings):
        trainer = make_trainer(
            NegGradPlus(1.0, SAM(0.1)), max_steps=1, logging_strategy="steps", logging_steps=1, **settings
        )
        trainer.train()
        return trainer.state.log_history[0]["loss"]

    assert first_loss(trainer={"compute_loss_func": doubled}) == pytest.approx(2 * first_loss(), rel=1e-4)
    model = timm_resnet()
    smooth = make_trainer(
        SharpMinMax(0.8, overlap=False), model=model, data=images(24), label_smoothing_factor=0.1, max_steps=2
    )
    smooth.train()


@pytest.mark.parametrize("method", ALL, ids=str)
def test_bf16_autocast(make_trainer, method):
    # 32 pixels: on CPUs with AMX torch leaves the bf16 weight gradient of a convolution over 1 x 1 maps uninitialised.
    trainer = make_trainer(method, model=timm_resnet(size=32), data=images(24, size=32), bf16=True, max_steps=3)
    trainer.train()
    assert all(weight.dtype == torch.float32 for weight in trainer.model.parameters())
    metrics = trainer.evaluate()
    assert 0 <= metrics["eval_forget_accuracy"] <= 1


def test_the_partition_is_made_in_fp32_also_under_bf16(make_trainer):
    """On a first run and on a second one of the same trainer, whose model accelerate has wrapped already."""
    plain = make_trainer(SharpMinMax(0.8, overlap=False), max_steps=1, learning_rate=0.0)
    plain.train()
    mixed = make_trainer(SharpMinMax(0.8, overlap=False), max_steps=1, learning_rate=0.0, bf16=True)
    for _ in range(2):
        mixed.train()
        for name, mask in plain.partition.masks.items():
            assert torch.equal(mask, mixed.partition.masks[name])


@pytest.mark.parametrize("method", ALL, ids=str)
def test_torch_compile(make_trainer, method):
    settings = {"model": BatchNormNet(), "data": rows(24, shape=(1, 5, 5)), "max_steps": 2}
    eager = make_trainer(method, **settings)
    eager.train()
    settings["model"] = BatchNormNet()
    compiled = make_trainer(method, **settings, torch_compile=True, torch_compile_backend="eager")
    compiled.train()
    assert_same_updates(weights_of(compiled.model), weights_of(eager.model), weights_of(BatchNormNet()))


def test_a_summary_says_how_many_parameters_of_each_layer_are_in_the_forget_part(make_trainer):
    trainer = make_trainer(SharpMinMax(0.8, fraction=0.25, overlap=False), max_steps=1)
    trainer.train()
    summary = trainer.partition.summary().splitlines()
    inside, total = sum(m.sum().item() for m in trainer.partition.masks.values()), 6 * 8 + 8 + 8 * 3 + 3
    assert summary[1].split() == ["all", "layers", str(inside), str(total), f"{inside / total:.2%}"]
    assert [line.split()[0] for line in summary[2:]] == ["first", "second"]
    assert sum(int(line.split()[1]) for line in summary[2:]) == inside == round(0.25 * total)


def test_save_and_load_of_a_timm_model_and_of_a_dataset_with_a_transform(make_trainer, tmp_path):
    table = datasets.Dataset.from_dict(
        {"pixels": [[float(i)] * 64 for i in range(24)], "label": [i % 3 for i in range(24)]}
    )

    def transform(batch):
        pixels = [torch.tensor(p).view(1, 8, 8) / 24 + 0.01 * torch.randn(1, 8, 8) for p in batch["pixels"]]
        return {"pixel_values": pixels, "labels": batch["label"]}

    trainer = make_trainer(
        SharpMinMax(0.8, overlap=False),
        model=timm_resnet(),
        data=table.with_transform(transform),
        trainer={"eval_dataset": table.with_transform(transform), "data_collator": DefaultDataCollator()},
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics == {**metrics, **{k: v for k, v in trainer.evaluate().items() if k.endswith(("loss", "accuracy"))}}
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForImageClassification.from_pretrained(str(tmp_path / "saved"))
    assert_same(weights_of(trainer.model), weights_of(loaded))


def test_a_table_without_a_transform_is_read_in_one_go_and_gives_the_same_run(make_trainer):
    data = rows(24)
    table = datasets.Dataset.from_dict({"x": [r["x"].tolist() for r in data], "labels": [r["labels"] for r in data]})
    as_list, as_table = (
        make_trainer(SharpMinMax(0.8, overlap=False), data=data),
        make_trainer(SharpMinMax(0.8, overlap=False), data=table),
    )
    as_list.train(), as_table.train()
    assert_same(weights_of(as_list.model), weights_of(as_table.model))


def test_only_parameters_that_require_grad_take_part(make_trainer):
    model = Mlp()
    model.first.requires_grad_(False)
    trainer = make_trainer(SharpMinMax(0.8, ASAM(2.0), scope="all", overlap=False), model=model)
    start = weights_of(model)
    trainer.train()
    end = weights_of(model)
    assert torch.equal(start["first.weight"], end["first.weight"]) and differs(start, end)
    assert set(trainer.partition.masks) == {"second.weight", "second.bias"}


def test_the_count_of_floating_point_operations_counts_every_pass(make_trainer):
    def flops(method):
        trainer = make_trainer(method, model=timm_resnet(), data=images(24), max_steps=1)
        trainer.train()
        return trainer.state.total_flos

    assert flops(NegGradPlus(1.0)) * 4 == flops(NegGradPlus(0.8)) * 2 == flops(SharpMinMax(0.8, overlap=False)) > 0


def test_drop_last_keeps_full_batches_only(make_trainer):
    trainer = make_trainer(NegGradPlus(0.8), dataloader_drop_last=True, per_device_train_batch_size=5)
    sizes = [len(batch["retain"]["x"]) for batch in trainer.get_train_dataloader()]
    assert sizes == [5, 5, 5]


def test_the_checkpoint_directory_is_trainers_own(make_trainer):
    trainer = make_trainer(NegGradPlus(0.8), save_strategy="epoch", save_total_limit=1)
    trainer.train()
    (kept,) = [entry for entry in os.listdir(trainer.args.output_dir) if entry.startswith("checkpoint-")]
    files = set(os.listdir(os.path.join(trainer.args.output_dir, kept)))
    assert {"optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth", "training_args.bin"} <= files
