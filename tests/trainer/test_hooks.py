"""The hooks of Trainer that are overridden exist, and ours can be called as Trainer calls its own."""

import inspect

import pytest
from parts import ROOT
from transformers import Trainer

from hf_sharp_unlearn import UnlearningTrainer

OVERRIDDEN = [
    name for name, value in vars(UnlearningTrainer).items()
    if inspect.isfunction(value) and hasattr(Trainer, name) and name != "__init__"
]  # fmt: skip
# In the parentheses: names that ours call differently, by position only.
RENAMED = {"_init_training_state": {"resume_from_checkpoint": "resume"}}


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_ours_can_be_called_as_trainer_calls_its_own(name):
    theirs = inspect.signature(getattr(Trainer, name)).parameters
    ours = inspect.signature(vars(UnlearningTrainer)[name]).parameters
    takes_rest = {p.kind for p in ours.values()} & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    for parameter in theirs:
        known = RENAMED.get(name, {}).get(parameter, parameter)
        assert known in ours or takes_rest, f"{name}() does not take {parameter}, which Trainer's has"


def test_contributing_lists_every_hook():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert len(OVERRIDDEN) > 30
    assert [name for name in OVERRIDDEN if f"`{name}`" not in text] == []


def test_every_hook_says_what_would_break_without_it():
    missing = [name for name in OVERRIDDEN if not vars(UnlearningTrainer)[name].__doc__]
    assert set(missing) <= {"_track_num_input_tokens"}, "it stands beside floating_point_ops, for the same reason"
