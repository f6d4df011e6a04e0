"""A pytest plugin: transformers' own Trainer tests meet `UnlearningTrainer`, fine-tuning on their `train_dataset`.

Only what has another name or another default here is translated. What behaves otherwise fails, and stands in
differences.toml with its reason.
"""

import inspect
import sys
from dataclasses import dataclass, field, fields
from typing import Any

import pytest
import transformers

from hf_sharp_unlearn import FineTune, UnlearningArguments, UnlearningTrainer

_DEFAULTS = {known.name: known.default for known in fields(transformers.TrainingArguments)}


@dataclass
class TrainingArguments(UnlearningArguments):
    """`UnlearningArguments` with the defaults of transformers' `TrainingArguments`."""

    optim: Any = field(default=_DEFAULTS["optim"])
    learning_rate: float = field(default=_DEFAULTS["learning_rate"])
    lr_scheduler_type: Any = field(default=_DEFAULTS["lr_scheduler_type"])
    logging_nan_inf_filter: bool = field(default=_DEFAULTS["logging_nan_inf_filter"])

    def __post_init__(self):
        if self.accelerator_config is None:
            self.accelerator_config = {}
        scheduled = self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
        if self.metric_for_best_model is None and (self.load_best_model_at_end or scheduled):
            self.metric_for_best_model = "loss"
        super().__post_init__()


class Trainer(UnlearningTrainer):
    """`UnlearningTrainer` with the signature of transformers' `Trainer`."""

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *others: Any,
        **options: Any,
    ):
        super().__init__(
            model,
            TrainingArguments("tmp_trainer") if args is None else args,
            data_collator,
            None,
            eval_dataset,
            *others,
            method=FineTune(),
            retain_dataset=_unused(model) if train_dataset is None else train_dataset,
            **options,
        )


def _unused(model: Any) -> list[dict] | None:
    """One sample for tests that evaluate, predict or save only: transformers' `Trainer` needs a set in `train` only."""
    return None if model is None else [{next(iter(inspect.signature(model.forward).parameters)): 0, "labels": 0}]


def pytest_configure() -> None:
    """Test modules take the names from here when they are imported."""
    import transformers  # again: importing some of its modules makes the package anew, and tests see the new one

    for kind, module in ((Trainer, transformers.trainer), (TrainingArguments, transformers.training_args)):
        setattr(transformers, kind.__name__, kind)
        setattr(module, kind.__name__, kind)


def pytest_collection_finish(session: pytest.Session) -> None:
    """A test that met the original, itself or through a helper beside it, would pass and claim nothing."""
    packages = {item.module.__name__.rpartition(".")[0] for item in session.items}
    for name, module in list(sys.modules.items()):
        for kind in (Trainer, TrainingArguments) if name.rpartition(".")[0] in packages else ():
            if getattr(module, kind.__name__, kind) is not kind:
                raise pytest.UsageError(f"{name} has taken transformers' own {kind.__name__}.")
