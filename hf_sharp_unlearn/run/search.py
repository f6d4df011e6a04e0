"""What a hyperparameter search minimises where it is not told."""

from collections.abc import Callable, Sequence

from transformers.trainer_utils import default_compute_objective

Objective = Callable[[dict[str, float]], float]


def default_objective(splits: Sequence[str], one_test_set: bool, own_metrics: bool) -> Objective:
    """Trainer's default on the user's own set: its loss, or the sum of the user's metrics on it.

    Raises ValueError where there is no such set: the sum over forget, retain and other sets would mean nothing.
    """
    if not one_test_set:
        raise ValueError(
            f"compute_objective=None: with the evaluation sets {list(splits)} there is no one number to search by. "
            "Pass compute_objective, e.g. lambda metrics: metrics['eval_retain_loss'] - metrics['eval_forget_loss']."
        )
    starts = tuple(f"eval_{split}_" for split in splits)

    def objective(metrics: dict[str, float]) -> float:
        own = {name: value for name, value in metrics.items() if not name.startswith((*starts, "eval_samples"))}
        return default_compute_objective(own if own_metrics else {"eval_loss": own["eval_loss"]})

    return objective
