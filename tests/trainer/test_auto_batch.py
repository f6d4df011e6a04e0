"""`auto_find_batch_size`: a failed attempt leaves nothing behind."""

import pytest
import torch
from parts import Mlp, assert_same, rows, weights_of
from transformers import TrainerCallback

from hf_sharp_unlearn import NegGradPlus, SharpMinMax


class OutOfMemoryOnce(TrainerCallback):
    def __init__(self):
        self.starts = []

    def on_step_begin(self, args, state, control, model, **kwargs):
        if state.global_step == 0:
            self.starts.append(weights_of(model))
        elif state.global_step == 2 and len(self.starts) == 1:
            raise RuntimeError("CUDA out of memory.")


@pytest.mark.parametrize("own_optimizer", [False, True])
def test_auto_find_batch_size_starts_again_from_the_same_weights(make_trainer, own_optimizer):
    model = Mlp(dropout=0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) if own_optimizer else None
    trainer = make_trainer(
        SharpMinMax(0.8, overlap=False),
        model=model,
        data=rows(60),
        auto_find_batch_size=True,
        per_device_train_batch_size=8,
        forget_batch_size=4,
        trainer={"optimizers": (optimizer, None)},
    )
    trainer.add_callback(fault := OutOfMemoryOnce())
    trainer.train()
    assert_same(*fault.starts)
    assert trainer._train_batch_size < 8
    assert trainer._streams().size("forget") == max(1, round(4 * trainer._train_batch_size / 8)), "the ratio is kept"
    size = trainer._train_batch_size
    clean_model = Mlp(dropout=0.3)
    clean = make_trainer(
        SharpMinMax(0.8, overlap=False),
        model=clean_model,
        data=rows(60),
        per_device_train_batch_size=size,
        forget_batch_size=max(1, round(size / 2)),
        trainer={
            "optimizers": (torch.optim.SGD(clean_model.parameters(), lr=0.1, momentum=0.9), None)
            if own_optimizer
            else (None, None)
        },
    )
    clean.train()
    assert_same(weights_of(clean.model), weights_of(trainer.model))


def test_auto_find_batch_size_puts_a_scheduler_of_the_users_own_back(make_trainer):
    model = Mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    trainer = make_trainer(
        NegGradPlus(0.8),
        model=model,
        data=rows(60),
        auto_find_batch_size=True,
        per_device_train_batch_size=8,
        max_steps=3,
        trainer={"optimizers": (optimizer, schedule)},
    )
    trainer.add_callback(OutOfMemoryOnce())
    trainer.train()
    assert optimizer.param_groups[0]["lr"] == 0.5**3


def test_auto_find_batch_size_covers_the_partition(make_trainer):
    """The partition's forward runs out of memory above two samples: the batch shrinks until it fits."""

    def hungry(outputs, inputs):
        if len(inputs["x"]) > 2:
            raise RuntimeError("CUDA out of memory.")
        return outputs["loss"]

    trainer = make_trainer(
        SharpMinMax(0.8, forget_loss=hungry, overlap=False),
        auto_find_batch_size=True,
        per_device_train_batch_size=8,
        forget_batch_size=8,
    )
    trainer.train()
    assert trainer._streams().size("forget") <= 2
