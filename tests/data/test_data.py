"""split_forget, the sampler of two streams, and the count of items, by themselves."""

import numpy as np
import pytest
import torch
from optional_packages import datasets
from parts import rows
from torch.utils.data import RandomSampler, SequentialSampler, Subset

from hf_sharp_unlearn import NegGradPlus, split_forget
from hf_sharp_unlearn.data.sampling import Pass, StreamBatchSampler, Walk
from hf_sharp_unlearn.data.sets import count_items
from hf_sharp_unlearn.runtime.rng import RngState, derive_seed, isolated_rng, seed_host


@pytest.mark.parametrize(
    "indices", [[3, 1], (3, 1), np.array([3, 1]), torch.tensor([3, 1]), range(1, 4, 2), {1, 3}], ids=str
)
def test_split_forget_takes_any_sequence_of_indices(indices):
    data = rows(5)
    forget, retain = split_forget(data, indices)
    assert isinstance(forget, Subset) and sorted(forget.indices) == [1, 3] and retain.indices == [0, 2, 4]


def test_split_forget_keeps_the_kind_of_a_table():
    table = datasets.Dataset.from_dict({"x": list(range(6))})
    forget, retain = split_forget(table, [5, 0])
    assert isinstance(forget, datasets.Dataset) and forget["x"][:] == [5, 0] and retain["x"][:] == [1, 2, 3, 4]
    forget, retain = split_forget(table, [5], [0, 1])
    assert forget["x"][:] == [5] and retain["x"][:] == [0, 1]


def sampler(retain, forget, sizes, processes=1, seed=3, drop_last=False):
    orders = {"retain": RandomSampler(range(retain))}
    plan = lambda epoch: (Pass("retain", "forget"),)  # noqa: E731
    return StreamBatchSampler(orders, sizes, plan, forget, seed=seed, processes=processes, drop_last=drop_last)


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("retain", [1, 7, 24, 49, 73])
@pytest.mark.parametrize("ratio", [1, 2, 0.5])
def test_the_global_batches_do_not_depend_on_the_number_of_processes(processes, retain, ratio):
    """24 retain samples a global batch, dealt to 1 to 4 processes: the same samples, none lost, none twice."""

    def windows(p):
        made = sampler(retain, 5, {"retain": 24 // p, "forget": int(24 // p * ratio)}, p)
        result = []
        for epoch in range(3):
            made.set_epoch(epoch)
            batches = list(made)
            assert len(batches) == len(made) and len(batches) % p == 0
            for low in range(0, len(batches), p):
                share = batches[low : low + p]
                for batch in share:  # every process has something of each stream to forward
                    assert {slot.stream for slot in batch} == {"retain", "forget"}
                result.append(sorted(slot for batch in share for slot in batch if slot.real))
        return result

    assert windows(processes) == windows(1)


def test_a_ratio_of_streams_that_does_not_divide_still_walks_evenly():
    made = sampler(20, 1000, {"retain": 4, "forget": 3})
    seen = []
    for epoch in range(4):
        made.set_epoch(epoch)
        for batch in made:
            seen.extend(slot.position for slot in batch if slot.stream == "forget")
    assert seen == list(range(4 * 15))


def test_a_walk_is_a_fresh_permutation_each_pass_and_random_access():
    walk = Walk(9, seed=1)
    passes = [[walk[9 * number + i][0] for i in range(9)] for number in range(4)]
    assert all(sorted(one) == list(range(9)) for one in passes) and len({tuple(one) for one in passes}) == 4
    assert [walk[i][0] for i in (30, 2, 17)] == [passes[3][3], passes[0][2], passes[1][8]]
    assert [Walk(9, seed=2)[i][0] for i in range(9)] != passes[0]


def test_a_sequential_order_stays_and_drop_last_drops():
    orders = {"retain": SequentialSampler(range(10))}
    made = StreamBatchSampler(orders, {"retain": 4}, lambda epoch: (Pass("retain"),), seed=0, drop_last=True)
    assert [[slot.index for slot in batch] for batch in made] == [[0, 1, 2, 3], [4, 5, 6, 7]] and len(made) == 2


def test_group_by_length_groups_and_is_the_same_every_time(make_trainer):
    data = [{"x": torch.zeros(6), "length": 1 + i % 12, "labels": i % 3} for i in range(48)]
    table = datasets.Dataset.from_list([{**row, "x": row["x"].tolist()} for row in data])

    def order():
        trainer = make_trainer(
            NegGradPlus(1.0),
            data=table,
            trainer={"forget_dataset": None, "retain_dataset": table},
            train_sampling_strategy="group_by_length",
            length_column_name="length",
        )
        made = trainer.get_train_dataloader().batch_sampler
        made.set_epoch(1)
        torch.rand(1)  # the global generator has no say
        return [slot.index for batch in made for slot in batch]

    first = order()
    assert first == order() and sorted(first) == list(range(48)) and first != list(range(48))


@pytest.mark.parametrize(
    ("features", "shift", "items"),
    [
        ({"labels": torch.tensor([0, 1, -100])}, False, 2),
        ({"labels": torch.tensor([[1, 2, -100], [3, -100, -100]])}, False, 3),
        ({"labels": torch.tensor([[1, 2, -100], [3, -100, 4]])}, True, 2),
        ({"labels": torch.tensor([[1, 2], [3, 4]]), "shift_labels": torch.tensor([[2, -100], [4, -100]])}, True, 2),
        ({"labels": torch.rand(5, 7)}, False, 5),
        ({"x": torch.rand(4, 2)}, False, 4),
        ({"labels": None, "x": torch.rand(4, 2)}, False, 4),
    ],
)
def test_count_items(features, shift, items):
    assert count_items(features, ["labels"], shift) == items


def test_seeds_depend_on_every_part_and_on_nothing_else():
    assert derive_seed(1, "a", 2) == derive_seed(1, "a", 2)
    assert len({derive_seed(*parts) for parts in [(1, 2), (2, 1), (12,), (1, "2"), ("1", 2)]}) == 5


def test_isolated_rng_puts_every_generator_back_whatever_is_raised():
    import random

    def draw():
        return random.random(), float(np.random.rand()), torch.rand(1).item()

    seed_host(0)
    expected = draw()
    seed_host(0)
    with pytest.raises(KeyError), isolated_rng():
        seed_host(5)
        draw()
        raise KeyError
    assert draw() == expected
    seed_host(0)
    state = RngState(torch.device("cpu"))
    draw()
    state.restore()
    assert draw() == expected
