"""What a reader must know before any number of a report: a model that was destroyed, sets that are one set."""

import math
from collections.abc import Mapping

import numpy as np

from ..metrics import Outputs, accuracy_of


def warnings_of(outputs: Mapping[str, Mapping[str, Outputs]]) -> list[str]:
    """Sentences; none where nothing is wrong. outputs: {model: {split: outputs}}, see `report.MODELS`."""
    own = outputs["unlearned"]
    found = [_collapse(own.get("retain"), outputs.get("original", {}).get("retain"))]
    found.append(_same(own["forget"], own["test"]) if "test" in own else None)
    return [sentence for sentence in found if sentence]


def _same(forget: Outputs, test: Outputs) -> str | None:
    """Told by the answers, in any order; where a model answers all samples alike nothing can be told."""
    if len(forget) != len(test) or len(forget) < 2:
        return None
    pairs = [(forget.loss, test.loss), (forget.features.sum(1), test.features.sum(1))]
    kinds = [len(np.unique(one.round(6))) > 1 for one, _ in pairs]
    if not any(kinds) or not all(np.allclose(np.sort(one), np.sort(other), 1e-5, 1e-7) for one, other in pairs):
        return None
    return (
        "The test set is the forget set: the model answers both alike, sample by sample. Attacks that tell forget from "
        "test samples mean nothing; give samples that no model has seen."
    )


def _collapse(retain: Outputs | None, original: Outputs | None) -> str | None:
    """The model is no better than chance on what it was to keep, and the original is, if it is there to be asked."""
    if retain is None or retain.without or not len(retain.targets):
        return None
    chance = float(np.unique(retain.targets, return_counts=True)[1].max() / len(retain.targets))
    value = accuracy_of(retain).value
    before = None if original is None else accuracy_of(original).value
    worse = before is None or before > chance
    # One class alone has no chance to be better than: there the loss tells, that of a guess among two at the least.
    guess = math.log(max(int(retain.targets.max()) + 1 if retain.logits is None else retain.logits.shape[1], 2))
    loss = float(np.mean(retain.loss))
    lost = loss > 2 * guess and (original is None or float(np.mean(original.loss)) < guess)
    if not (value <= chance and chance < 1 and worse or lost and value < max(chance, 0.5)):
        return None
    damage = (
        "If it was better before, it was damaged"
        if before is None
        else f"It was {before:.3g} before: the model was damaged as a whole, not only made to forget"
    )
    return (
        f"The model is no better than chance on the retain set: accuracy {value:.3g}, where the most frequent class "
        f"alone gives {chance:.3g}, and mean loss {loss:.3g}. {damage}, and its forget numbers say nothing. Take a "
        "smaller learning rate, fewer steps, or a method that holds on to the retain set."
    )
