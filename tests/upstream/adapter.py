"""Trainer as transformers' own tests call it, served by UnlearningTrainer: fine-tuning, retain set = train_dataset.

What is adapted is the way in, and nothing else: the signature, arguments with Trainer's defaults, one evaluation set
instead of splits, a micro-batch that is not wrapped in a stream. A test that fails with it shows a difference of the
library; `differences.py` says which of them are meant.
"""

import copy
import dataclasses
import functools

from transformers import TrainingArguments

from hf_sharp_unlearn import FineTune, UnlearningArguments, UnlearningTrainer


@functools.cache
def adapted_class(kind: type) -> type:
    """A class of arguments that is both `kind` and UnlearningArguments."""
    bases = (UnlearningArguments,) if kind is TrainingArguments else (kind, UnlearningArguments)
    return kind if issubclass(kind, UnlearningArguments) else type(kind.__name__, bases, {})


def adapted(args: TrainingArguments | None) -> UnlearningArguments:
    """The same arguments, with Trainer's defaults where nothing was said; those that only unlearning has are added."""
    args = TrainingArguments("tmp_trainer") if args is None else args
    own = copy.copy(args)
    for field in dataclasses.fields(UnlearningArguments):
        if not hasattr(own, field.name):
            setattr(own, field.name, field.default)
    own.__class__ = adapted_class(type(args))
    return own


class Trainer(UnlearningTrainer):
    def __init__(self, model=None, args=None, data_collator=None, train_dataset=None, eval_dataset=None, *rest, **named):
        # Without a training set a trainer can evaluate: the method's stream then is the evaluation set, never trained on.
        one = next(iter(eval_dataset.values())) if isinstance(eval_dataset, dict) else eval_dataset
        retain = train_dataset if train_dataset is not None else one
        super().__init__(
            model, adapted(args), data_collator, None, None, *rest, method=FineTune(), retain_dataset=retain, **named
        )
        self.train_dataset, self.eval_dataset = train_dataset, eval_dataset

    def training_step(self, model, inputs, num_items_in_batch=None):
        return super().training_step(model, inputs if "retain" in inputs else {"retain": inputs}, num_items_in_batch)
