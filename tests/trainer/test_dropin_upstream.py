"""What transformers' own Trainer tests have found here (see tests/upstream)."""

from parts import rows
from torch.utils.data import IterableDataset

from hf_sharp_unlearn import FineTune


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
