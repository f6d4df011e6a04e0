"""The mean loss of a split does not depend on batches and processes."""

import itertools
import math

import pytest
import torch

from hf_sharp_unlearn.run import MeanLoss


def dealt(total, size, processes):
    """Batches of sample numbers as accelerate deals them: one by one, the last round filled up from the beginning."""
    batches = [list(range(low, min(low + size, total))) for low in range(0, total, size)]
    filler = itertools.cycle(range(total))
    while len(batches[-1]) < size or len(batches) % processes:
        if len(batches[-1]) == size:
            batches.append([])
        batches[-1].append(next(filler))
    return [batches[rank::processes] for rank in range(processes)]


@pytest.mark.parametrize("total", [1, 5, 7, 8, 9, 16])
@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("ragged", [False, True])
def test_every_real_sample_counts_once_by_its_items(monkeypatch, total, processes, ragged):
    """The sum over processes is played: each keeps what it would have sent."""
    losses = torch.rand(total, generator=torch.Generator().manual_seed(total))
    items = [1 + (i % 4 if ragged else 0) for i in range(total)]
    expected = sum(float(losses[i]) * items[i] for i in range(total)) / sum(items)

    def mean_of(batch):
        ids = batch["ids"].tolist()
        return sum(losses[i] * items[i] for i in ids) / sum(items[i] for i in ids)

    def count(batch):
        return sum(items[i] for i in batch["ids"].tolist()), len(batch["ids"])

    sent = []
    monkeypatch.setattr("hf_sharp_unlearn.run.evaluation.all_sum", lambda values, *_: sent.append(values) or values)
    for rank, batches in enumerate(dealt(total, 4, processes)):
        collected = MeanLoss(count, batch_size=4, total=total, processes=processes, rank=rank, keep_infinite=True)
        for ids in batches:
            if processes == 1:
                ids = ids[: total - batches.index(ids) * 4]
            batch = {"ids": torch.tensor(ids), "other": "kept"}
            collected.add(mean_of(batch), batch, lambda part: (mean_of(part), None, None))
        found = collected.mean(torch.device("cpu"))
    shares = {sum(items[low : low + 4]) / len(items[low : low + 4]) for low in range(0, total, 4)}
    if processes == 1 and len(shares) == 1:
        assert found is None, "Trainer's own number"
        return
    assert sum(n for _, n in sent) == sum(items)
    assert sum(loss for loss, _ in sent) / sum(items) == pytest.approx(expected, rel=1e-6)


def test_losses_that_are_not_finite_count_only_if_asked_for():
    def mean(keep):
        collected = MeanLoss(lambda b: b["count"], batch_size=1, total=2, processes=1, rank=0, keep_infinite=keep)
        for value, items in ((1.0, 2), (math.nan, 3)):
            collected.add(torch.tensor(value), {"count": (items, 1)}, None)
        return collected.mean(torch.device("cpu"))

    assert mean(False) == 1.0 and math.isnan(mean(True))
    empty = MeanLoss(lambda b: (0, 1), batch_size=1, total=1, processes=1, rank=0, keep_infinite=False)
    empty.add(None, {}, None)
    assert empty.mean(torch.device("cpu")) is None, "there was no loss"
