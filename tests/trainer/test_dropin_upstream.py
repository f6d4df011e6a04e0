"""What transformers' own Trainer tests have found here (see tests/upstream)."""

import pytest
import torch
from parts import Mlp, rows
from torch.utils.data import IterableDataset

from hf_sharp_unlearn import FineTune, NegGradPlus


class Stream(IterableDataset):
    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter(self.samples)


def test_eval_set_without_a_length_where_lines_are_logged(make_trainer):
    samples = rows(9, seed=1)
    lines = {"disable_tqdm": False, "per_device_eval_batch_size": 4}  # the tests' stderr is no terminal
    found = make_trainer(FineTune(), **lines, trainer={"eval_dataset": Stream(samples)}).evaluate()
    listed = make_trainer(FineTune(), **lines, trainer={"eval_dataset": samples}).evaluate()
    assert found["eval_loss"] == listed["eval_loss"] and found["eval_samples"] == 9


def test_eval_loader_without_an_argument_is_of_the_only_test_set(make_trainer):
    samples = rows(9, seed=1)
    trainer = make_trainer(FineTune(), per_device_eval_batch_size=4, trainer={"eval_dataset": samples})
    loader = trainer.get_eval_dataloader()
    assert len(loader) == 3
    torch.testing.assert_close(torch.cat([batch["x"] for batch in loader]), torch.stack([row["x"] for row in samples]))


def test_eval_loader_without_an_argument_asks_which_of_several_splits(make_trainer):
    for own in (None, {"first": rows(4), "second": rows(5)}):
        trainer = make_trainer(FineTune(), trainer={"eval_dataset": own})
        with pytest.raises(ValueError, match="retain"):
            trainer.get_eval_dataloader()
        assert len(trainer.get_eval_dataloader("retain")) > 0


def test_step_of_a_batch_that_has_no_stream_is_refused(make_trainer):
    """It returned 0 and left no gradient, without a word."""
    model = Mlp()
    for method in (FineTune(), NegGradPlus(alpha=0.9)):
        trainer = make_trainer(method, model)
        batch = trainer.data_collator(rows(4))
        with pytest.raises(ValueError, match="'retain': features"):
            trainer.training_step(model, batch)
    trainer.training_step(model, {"retain": batch})
    assert all(weight.grad is not None for weight in model.parameters())
