"""Micro-batches of 8 x 4 make the same step as one batch of 32, at the ragged end of an epoch too."""

import pytest
import torch
from parts import Mlp, assert_same_updates, rows, weights_of
from torch import nn

from hf_sharp_unlearn import ASAM, SAM, NegGradPlus, SharpMinMax

METHODS = [
    NegGradPlus(0.8),
    NegGradPlus(0.8, SAM(0.2)),
    NegGradPlus(0.8, ASAM(0.5), "retain"),
    NegGradPlus(0.0),
    NegGradPlus(1.0),
    SharpMinMax(0.8, overlap=False),
    SharpMinMax(0.8, SAM(0.2), scope="all", overlap=True),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("forget_batch", [None, 8])
def test_eight_times_four_is_thirty_two_times_one(make_trainer, method, forget_batch):
    data = rows(128)  # 101 to retain: the last window has 5 samples in one micro-batch
    runs = {}
    for size, accumulation in ((32, 1), (8, 4)):
        trainer = make_trainer(
            method,
            data=data,
            forget=range(27),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            forget_batch_size=None if forget_batch is None else forget_batch * size // 32,
            logging_strategy="steps",
            logging_steps=1,
        )
        trainer.train()
        runs[size] = weights_of(trainer.model), trainer.state.log_history
    assert_same_updates(runs[8][0], runs[32][0], weights_of(Mlp()))
    for a, b in zip(runs[32][1][:-1], runs[8][1][:-1], strict=True):
        logged = {"loss", "grad_norm", *(f"loss_{stream}" for stream in method.streams)}
        assert logged <= a.keys()
        for key in logged:
            assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-6)


class Tokens(nn.Module):
    """A token-level loss: the mean is over unmasked labels, so micro-batches weigh what they hold."""

    def __init__(self):
        super().__init__()
        self.net = Mlp()

    def forward(self, x, labels=None):
        logits = self.net(x)["logits"]
        return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


def test_a_masked_label_does_not_count(make_trainer):
    generator = torch.Generator().manual_seed(0)
    data = []
    for _ in range(40):
        labels = torch.randint(3, (5,), generator=generator)
        labels[torch.rand(5, generator=generator) < 0.5] = -100
        data.append({"x": torch.randn(5, 6, generator=generator), "labels": labels})
    data[9]["labels"][:] = -100  # a sample without any target
    runs = []
    for size, accumulation in ((8, 1), (1, 8)):
        torch.manual_seed(0)
        start = weights_of(model := Tokens())
        trainer = make_trainer(
            SharpMinMax(0.8, overlap=False),
            model=model,
            data=data,
            forget=range(9),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
        )
        trainer.train()
        runs.append(weights_of(trainer.model))
    assert_same_updates(runs[1], runs[0], start)


def test_the_logged_losses_are_the_means_over_the_window(make_trainer):
    trainer = make_trainer(
        NegGradPlus(0.75), gradient_accumulation_steps=2, max_steps=1, logging_strategy="steps", logging_steps=1
    )
    before = Mlp()
    batches = list(trainer.get_train_dataloader())[:2]
    trainer.train()
    means = {}
    for stream in ("retain", "forget"):
        x = torch.cat([batch[stream]["x"] for batch in batches])
        labels = torch.cat([batch[stream]["labels"] for batch in batches])
        means[stream] = before(x, labels)["loss"].item()
    logged = trainer.state.log_history[0]
    assert logged["loss_retain"] == pytest.approx(means["retain"], rel=1e-6)
    assert logged["loss_forget"] == pytest.approx(means["forget"], rel=1e-6)
    assert logged["loss"] == pytest.approx(0.75 * means["retain"] - 0.25 * means["forget"], rel=1e-5)
