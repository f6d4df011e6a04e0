"""Plans: epochs of several passes, windows that mix none, epochs of different length, the union of both sets."""

import math

import pytest
import torch
from parts import Mlp, assert_same, rows, weights_of
from torch.utils.data import RandomSampler
from transformers import TrainerCallback

from hf_sharp_unlearn import FineTune, Influence, NegGradPlus, RandomLabel, Scrub
from hf_sharp_unlearn.data.sampling import Pass, StreamBatchSampler
from hf_sharp_unlearn.data.sets import Union

RETAIN, FORGET, EPOCHS = 18, 6, 4


def scrub_plan(epoch):
    return (Pass("forget"), Pass("retain")) if epoch < 2 else (Pass("retain"),)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("drop_last", [False, True])
def test_passes_follow_each_other_and_no_window_mixes_them(processes, accumulation, drop_last):
    made = StreamBatchSampler(
        {"retain": RandomSampler(range(29)), "forget": RandomSampler(range(10))},
        {"retain": 4, "forget": 2},
        scrub_plan,
        seed=1,
        processes=processes,
        accumulation=accumulation,
        drop_last=drop_last,
    )
    for epoch in range(3):
        made.set_epoch(epoch)
        batches = list(made)
        assert len(batches) == len(made) == made.micro_batches(epoch) * processes
        mine = batches[::processes]
        windows = [mine[low : low + accumulation] for low in range(0, len(mine), accumulation)]
        assert len(windows) == made.updates(epoch)
        kinds = [{slot.stream for batch in window for slot in batch} for window in windows]
        assert all(len(kind) == 1 for kind in kinds), "no window mixes two passes, none is empty"
        names = [kind.pop() for kind in kinds]
        assert names == sorted(names), "the pass over the forget set comes first"
        for stream, size in (("retain", 29), ("forget", 10)):
            seen = [s.index for batch in batches for s in batch if s.stream == stream and s.real]
            if stream == "forget" and epoch == 2:
                assert not seen
            elif drop_last:
                assert (
                    len(seen)
                    == len(set(seen))
                    == size // (made.sizes[stream] * processes) * made.sizes[stream] * processes
                )
            else:
                assert sorted(seen) == list(range(size))


class Epochs(TrainerCallback):
    """The step and the epoch that Trainer counts, at the end of each of its epochs."""

    def __init__(self):
        self.ends, self.begins = [], []

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.begins.append(state.epoch)

    def on_epoch_end(self, args, state, control, **kwargs):
        self.ends.append((state.global_step, state.epoch))


@pytest.mark.parametrize(("accumulation", "long", "short"), [(1, 2 + 5, 5), (2, 1 + 3, 3), (3, 1 + 2, 2)])
def test_trainer_counts_epochs_of_different_length(make_trainer, accumulation, long, short):
    """SCRUB with msteps = 2: 6 forget samples and 18 retain samples in batches of 4."""
    trainer = make_trainer(Scrub(msteps=2), gradient_accumulation_steps=accumulation, num_train_epochs=EPOCHS)
    trainer.add_callback(epochs := Epochs())
    trainer.train()
    steps = [long, 2 * long, 2 * long + short, 2 * long + 2 * short]
    assert epochs.ends == [(step, epoch) for step, epoch in zip(steps, (1, 2, 3, 4), strict=True)]
    assert trainer.state.max_steps == trainer.state.global_step == steps[-1]


@pytest.mark.parametrize("fraction", [0.5, 1.25, 2.5])
def test_a_fraction_of_an_epoch(make_trainer, fraction):
    trainer = make_trainer(Scrub(msteps=2), num_train_epochs=fraction)
    trainer.train()
    lengths = [7, 7, 5]
    whole = int(fraction)
    assert trainer.state.global_step == sum(lengths[:whole]) + math.ceil((fraction - whole) * lengths[whole])


def test_max_steps_stops_in_any_pass(make_trainer):
    for steps in (1, 2, 8, 20):
        trainer = make_trainer(Scrub(msteps=2), max_steps=steps)
        trainer.train()
        assert trainer.state.global_step == steps == trainer.state.max_steps


@pytest.mark.parametrize("epochs", [1, 2.5])
def test_equal_epochs_are_counted_as_trainer_counts_them(make_trainer, monkeypatch, epochs):
    from transformers import Trainer

    trainer = make_trainer(NegGradPlus(0.8), num_train_epochs=epochs, gradient_accumulation_steps=2)
    loader = trainer.get_train_dataloader()
    ours = trainer.set_initial_training_values(trainer.args, loader)
    theirs = Trainer.set_initial_training_values(trainer, trainer.args, loader)
    assert (*ours[:3], *ours[4:]) == (*theirs[:3], *theirs[4:])
    assert ours[3] == math.ceil(epochs) * 18


def test_a_single_step_is_one_step_whatever_the_arguments_say(make_trainer):
    model = Mlp()
    trainer = make_trainer(
        Influence(damping=0.1), model=model, num_train_epochs=7, lr_scheduler_type="cosine", warmup_steps=5,
        optim="adamw_torch", weight_decay=0.3,
    )  # fmt: skip
    trainer.train()
    other = make_trainer(Influence(damping=0.1), max_grad_norm=0.0)
    other.train()
    assert trainer.state.global_step == trainer.state.max_steps == 1
    assert_same(weights_of(model), weights_of(other.model))


def test_the_union_is_both_sets_and_random_label_trains_on_it_in_one_order(make_trainer):
    retain, forget = rows(18), rows(6, seed=5)
    union = Union(retain, forget)
    assert len(union) == 24 and union[17] is retain[17] and union[18] is forget[0]
    trainer = make_trainer(RandomLabel(), trainer={"retain_dataset": retain, "forget_dataset": forget})
    seen = []
    for epoch in range(2):
        loader = trainer.get_train_dataloader()
        loader.set_epoch(epoch)
        shares = []
        for batch in loader:
            x, labels = batch["union"]["x"], batch["union"]["labels"]
            shares.append(0)
            for one, label in zip(x, labels, strict=True):
                place = next(i for i in range(24) if torch.equal(union[i]["x"], one))
                seen.append(place)
                shares[-1] += union.is_forget(place)
                assert (int(label) == union[place]["labels"]) == (not union.is_forget(place))
        assert len(set(shares)) > 1, "shuffled together, not a fixed share of each batch"
    assert sorted(seen) == sorted([*range(24)] * 2) and seen[:24] != seen[24:]


@pytest.mark.parametrize("workers", [0, 2])
def test_random_labels_do_not_depend_on_workers_and_change_with_the_epoch(make_trainer, workers):
    def served(epoch, workers):
        trainer = make_trainer(
            RandomLabel(), data=[{**row, "labels": 0} for row in rows(24)], dataloader_num_workers=workers
        )
        loader = trainer.get_train_dataloader()
        loader.set_epoch(epoch)
        return {
            tuple(x.tolist()): int(y)
            for b in loader
            for x, y in zip(*(b["union"][k] for k in ("x", "labels")), strict=True)
        }

    first = served(0, 0)
    assert served(0, workers) == first
    assert sum(label != 0 for label in first.values()) == 6
    assert served(1, workers) != first


def test_fine_tuning_needs_no_forget_set(make_trainer):
    trainer = make_trainer(FineTune(), trainer={"forget_dataset": None})
    trainer.train()
    with_one = make_trainer(FineTune())
    with_one.train()
    assert_same(weights_of(trainer.model), weights_of(with_one.model))
