"""Resume is bitwise equal to the uninterrupted run; the order of samples is a pure function of (seed, position)."""

import json
import os

import pytest
import torch
from parts import Augmented, Mlp, StopAt, assert_same, rows, weights_of
from torch.utils.data import Dataset

from hf_sharp_unlearn import ASAM, NegGradPlus, SharpMinMax

METHODS = [
    NegGradPlus(0.8),
    NegGradPlus(0.8, ASAM(0.5)),
    SharpMinMax(0.8, overlap=False),
    SharpMinMax(0.8, overlap=True),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize(("workers", "accumulation"), [(0, 1), (0, 3), (2, 1), (2, 3), ("persistent", 1)])
def test_resume_from_the_middle_of_an_epoch_is_bitwise(make_trainer, tmp_path, method, workers, accumulation):
    """18 retain samples in batches of 2: 9 micro-batches; the stop is inside the second epoch, with dropout."""

    def make(name):
        return make_trainer(
            method,
            model=Mlp(dropout=0.3),
            data=Augmented(rows(24)),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=accumulation,
            dataloader_num_workers=1 if workers == "persistent" else workers,
            dataloader_persistent_workers=workers == "persistent",
            eval_strategy="steps",
            eval_steps=5,
            num_train_epochs=3,
            output_dir=tmp_path / name,
        )

    stop = 14 if accumulation == 1 else 4
    whole = make("whole")
    whole.train()
    first = make("parts")
    first.add_callback(StopAt(stop))
    first.train()
    second = make("parts")
    second.train(resume_from_checkpoint=True)
    assert 0 < second.state.global_step - stop < second.state.max_steps
    assert_same(weights_of(whole.model), weights_of(second.model))
    for name, mask in (whole.partition.masks if whole.partition else {}).items():
        assert torch.equal(mask, second.partition.masks[name])


def test_the_same_seed_gives_the_same_result_and_another_seed_another(make_trainer):
    def run(seed):
        trainer = make_trainer(SharpMinMax(0.8, overlap=False), data=Augmented(rows(24)), seed=seed)
        trainer.train()
        return weights_of(trainer.model)

    assert_same(run(1), run(1))
    assert any(not torch.equal(a, b) for a, b in zip(run(1).values(), run(2).values(), strict=True))


class Recorder(Dataset):
    """Items that carry their own index."""

    def __init__(self, size, offset):
        self.size, self.offset = size, offset

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"x": torch.full((6,), float(index + self.offset)), "labels": 0}


def served(make_trainer, epochs=3, **arguments):
    """The samples of each stream in the order in which training sees them."""
    seen = {"retain": [], "forget": []}

    def loss(stream):
        def record(outputs, inputs):
            seen[stream].extend(inputs["x"][:, 0].int().tolist())
            return outputs["loss"]

        return record

    method = NegGradPlus(0.8, forget_loss=loss("forget"), retain_loss=loss("retain"))
    trainer = make_trainer(
        method,
        trainer={"forget_dataset": Recorder(7, 1000), "retain_dataset": Recorder(19, 0)},
        num_train_epochs=epochs,
        **arguments,
    )
    trainer.train()
    return seen


def test_every_forget_sample_is_seen_once_before_any_is_seen_twice(make_trainer):
    for forget_batch in (None, 1, 3, 16):
        order = served(make_trainer, forget_batch_size=forget_batch)["forget"]
        passes = [order[low : low + 7] for low in range(0, len(order), 7)]
        for one in passes[:-1]:
            assert sorted(one) == list(range(1000, 1007))
        assert len(set(passes[-1])) == len(passes[-1])
        if len(passes) > 3:
            assert len({tuple(one) for one in passes[:-1]}) > 1, "each pass is shuffled anew"


def test_an_epoch_is_one_pass_over_the_retain_set_and_batches_hold_both_streams(make_trainer):
    order = served(make_trainer)["retain"]
    epochs = [order[low : low + 19] for low in range(0, len(order), 19)]
    assert len(epochs) == 3 and all(sorted(epoch) == list(range(19)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_does_not_depend_on_workers_or_accumulation(make_trainer):
    one = served(make_trainer)
    assert served(make_trainer, dataloader_num_workers=2) == one
    assert served(make_trainer, dataloader_num_workers=1, dataloader_persistent_workers=True) == one
    assert served(make_trainer, per_device_train_batch_size=2, gradient_accumulation_steps=2) == one


@pytest.mark.parametrize("strategy", ["random", "sequential"])
def test_sampling_strategies(make_trainer, strategy):
    order = served(make_trainer, train_sampling_strategy=strategy, epochs=1)["retain"]
    assert (order == list(range(19))) == (strategy == "sequential")


def test_every_checkpoint_has_the_partition_and_resuming_without_it_is_an_error(make_trainer):
    trainer = make_trainer(SharpMinMax(0.8, overlap=False), save_strategy="steps", save_steps=3)
    trainer.train()
    checkpoints = [entry for entry in os.listdir(trainer.args.output_dir) if entry.startswith("checkpoint-")]
    assert len(checkpoints) >= 3
    for entry in checkpoints:
        assert os.path.isfile(os.path.join(trainer.args.output_dir, entry, "partition.safetensors"))
    path = os.path.join(trainer.args.output_dir, checkpoints[0])
    os.remove(os.path.join(path, "partition.safetensors"))
    again = make_trainer(SharpMinMax(0.8, overlap=False))
    start = weights_of(again.model)
    with pytest.raises(ValueError, match="resume_from_checkpoint.*partition"):
        again.train(resume_from_checkpoint=path)
    assert_same(start, weights_of(again.model))


def test_a_checkpoint_whose_mask_does_not_match_the_model_is_refused_before_its_weights_are_loaded(make_trainer):
    trainer = make_trainer(SharpMinMax(0.8, overlap=False), save_strategy="steps", save_steps=3)
    trainer.train()
    model = Mlp(seed=5)
    model.first.bias.requires_grad_(False)
    other = make_trainer(SharpMinMax(0.8, overlap=False), model=model)
    start = weights_of(model)
    with pytest.raises(ValueError, match="first.bias"):
        other.train(resume_from_checkpoint=os.path.join(trainer.args.output_dir, "checkpoint-3"))
    assert_same(start, weights_of(model))


def test_the_trainer_state_of_a_resumed_run_continues(make_trainer, tmp_path):
    trainer = make_trainer(
        SharpMinMax(0.8, overlap=False), save_strategy="steps", save_steps=3, output_dir=tmp_path / "a"
    )
    trainer.train()
    with open(tmp_path / "a" / "checkpoint-3" / "trainer_state.json") as file:
        assert json.load(file)["global_step"] == 3


def test_resuming_with_another_fraction_or_from_nowhere_is_an_error(make_trainer):
    trainer = make_trainer(SharpMinMax(0.8, overlap=False), save_strategy="steps", save_steps=3)
    trainer.train()
    checkpoint = os.path.join(trainer.args.output_dir, "checkpoint-3")
    with pytest.raises(ValueError, match="fraction=0.5"):
        make_trainer(SharpMinMax(0.8, fraction=0.5, overlap=False)).train(resume_from_checkpoint=checkpoint)
    with pytest.raises(ValueError, match="not a directory"):
        make_trainer(SharpMinMax(0.8, overlap=False)).train(resume_from_checkpoint=checkpoint + "0")


def test_resuming_from_the_latest_passes_over_what_a_killed_run_has_cut_off(make_trainer, tmp_path, caplog):
    def make():
        return make_trainer(SharpMinMax(0.8, overlap=False), save_strategy="steps", save_steps=3)

    whole = make()
    whole.train()
    latest, before = (tmp_path / "out" / f"checkpoint-{step}" for step in (10, 9))
    (tmp_path / "out" / "checkpoint-99x").mkdir()
    with open(latest / "model.safetensors", "r+b") as file:
        file.truncate(100)
    again = make()
    again.train(resume_from_checkpoint=True)
    assert f"Going on from {before}" in caplog.text and "model.safetensors is cut off" in caplog.text
    assert_same(weights_of(whole.model), weights_of(again.model))
    os.remove(before / "optimizer.pt")
    (latest / "trainer_state.json").write_text('{"epoch"')
    with pytest.raises(ValueError, match="trainer_state.json is cut off. Name another"):
        make().train(resume_from_checkpoint=str(latest))
    for step in (3, 6):
        os.remove(tmp_path / "out" / f"checkpoint-{step}" / "rng_state.pth")
    with pytest.raises(
        ValueError, match="no checkpoint in .* is whole .*it has no optimizer.pt.*it has no rng_state.pth"
    ):
        make().train(resume_from_checkpoint=True)


def test_limits_on_checkpoints_leave_folders_of_the_users(make_trainer, tmp_path):
    (tmp_path / "out" / "checkpoint-best").mkdir(parents=True)
    make_trainer(NegGradPlus(0.8), save_strategy="steps", save_steps=2, save_total_limit=2, max_steps=8).train()
    assert sorted(os.listdir(tmp_path / "out")) == ["checkpoint-6", "checkpoint-8", "checkpoint-best"]
