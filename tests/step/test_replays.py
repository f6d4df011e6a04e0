"""Second passes draw what their first ones drew, from whichever generator; what was not moved is not put back."""

import random

import numpy as np
import pytest
import torch
from parts import Mlp, rows

from hf_sharp_unlearn import ASAM, SharpMinMax
from hf_sharp_unlearn.runtime import rng

DRAWS = {
    "python": random.random,
    "numpy": np.random.random,
    "numpy, every other normal number lies ready": lambda: np.random.randn(),
    "torch": lambda: torch.rand(()).item(),
}


class Drawing(Mlp):
    """Draws in each forward; writes down what it drew."""

    def __init__(self, draws):
        super().__init__()
        self.draws, self.seen = draws, []

    def forward(self, x, labels=None):
        self.seen.append([draw() for draw in self.draws])
        return super().forward(x, labels)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("names", [[name] for name in DRAWS] + [list(DRAWS)], ids=lambda names: "+".join(names)[:30])
def test_second_passes_draw_what_the_first_ones_drew(make_trainer, names, accumulation):
    model = Drawing([DRAWS[name] for name in names])
    trainer = make_trainer(SharpMinMax(0.8, ASAM(0.1), overlap=False), model=model, data=rows(40), max_steps=2,
                           gradient_accumulation_steps=accumulation)  # fmt: skip
    before = len(model.seen)
    trainer.train()
    seen = model.seen[before:]
    seen = seen[len(seen) - 8 * accumulation :]  # of the two steps; the partition came first
    clean = []
    for step in (seen[: 4 * accumulation], seen[4 * accumulation :]):
        first, second = step[: 2 * accumulation], step[2 * accumulation :]
        assert first == second
        clean += first
    assert len({tuple(drawn) for drawn in clean}) == len(clean), "first passes go on where the last one stopped"


def test_a_model_that_draws_nothing_moves_no_generator(make_trainer, monkeypatch):
    put_back = []
    plain = rng._generators

    def watched(device):
        return {
            name: (get, lambda state, name=name, put=put: (put_back.append(name), put(state)))
            for name, (get, put) in plain(device).items()
        }

    trainer = make_trainer(SharpMinMax(0.8, ASAM(0.1), overlap=False), max_steps=2)
    monkeypatch.setattr(rng, "_generators", watched)
    trainer.train()
    assert put_back == []
    trainer = make_trainer(SharpMinMax(0.8, ASAM(0.1), overlap=False), model=Drawing([random.random]), max_steps=2)
    trainer.train()
    assert set(put_back) == {"python"}
