"""CONTRIBUTING's recipe for a method, word for word: both blocks make a class that trains, sharp and plain."""

import re
import textwrap
from dataclasses import dataclass

import pytest
from parts import ROOT, assert_same, differs, rows, weights_of

from hf_sharp_unlearn import SAM, Method
from hf_sharp_unlearn.step import Sharpness


def recipe():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    section = text[text.index("## Adding a method") : text.index("## Adding a metric")]
    head, step = (textwrap.dedent(block) for block in re.findall(r"```python\n(.*?)```", section, re.S))
    names = {"dataclass": dataclass, "Method": Method, "Sharpness": Sharpness}
    exec(head, names)
    exec(f"{head.replace('Descent', 'OfOnesOwn')}\n{textwrap.indent(textwrap.dedent(step), '    ')}", names)
    return names["Descent"], names["OfOnesOwn"]


@pytest.mark.parametrize("sharpness", [None, SAM(0.0), SAM(0.2)])
def test_the_recipe_trains(make_trainer, sharpness):
    ends = []
    for kind in recipe():
        trainer = make_trainer(kind(sharpness=sharpness), data=rows(24), max_steps=2)
        start = weights_of(trainer.model)
        trainer.train()
        ends.append(weights_of(trainer.model))
        assert differs(ends[-1], start)
    assert differs(*ends), "one learns both sets, the other the retain set"
    plain = make_trainer(recipe()[1](), data=rows(24), max_steps=2)
    plain.train()
    if sharpness is None or sharpness.rho == 0:
        assert_same(ends[1], weights_of(plain.model))
    else:
        assert differs(ends[1], weights_of(plain.model))
