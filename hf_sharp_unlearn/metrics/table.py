"""Every metric by name, with what it is computed from and which way is better: METRICS.

A metric is one function that returns {key: Estimate or Absent}; an input that is missing raises `Unavailable`, and the
report shows the reason instead of a number.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from . import entanglement, mia, shadow
from .agreement import jensen_shannon, prediction_agreement
from .estimate import Absent, Estimate, Unavailable, mean
from .forgetting_quality import final_score, forgetting_quality
from .gaps import Gap, gap, of_gaps, paired_gap
from .klom import klom_summary
from .outputs import Outputs, accuracy_of
from .roc import attack_rates
from .subject import Splits, Subject
from .tow import average_gap, tug_of_war, tug_of_war_mia
from .u_lira import u_lira_summary

Found = dict[str, Estimate | Absent]
ACCURACIES = ("retain", "forget", "test")
LEAST_MODELS = 20  # of a kind; with fewer, KLoM and forgetting quality are noise


# ---- of one model ----


def accuracy_by_split(model: Subject) -> Found:
    """Share of correct predictions (of items, for token models), in [0, 1]."""
    return {split: accuracy_of(outputs) for split, outputs in model.splits.items()}


def loss_by_split(model: Subject) -> Found:
    """Mean loss over samples, >= 0: cross-entropy in nats, or the squared error of a regression."""
    found = {split: mean(outputs.loss) for split, outputs in model.splits.items()}
    return {
        split: loss if loss.low is None else dataclasses.replace(loss, low=max(loss.low, 0.0))
        for split, loss in found.items()
    }


def unlearning_accuracy(model: Subject) -> Found:
    """1 - accuracy on the forget set, in [0, 1] (UA of arXiv 2304.04934)."""
    found = accuracy_of(model["forget"])
    turned = [None if end is None else 1 - end for end in (found.high, found.low)]
    return {"": Estimate(1 - found.value, found.n, *turned, found.method)}


def svc_attack(model: Subject) -> Found:
    """Share of the forget set that an SVC on model outputs takes for non-members (forget efficacy), in [0, 1]."""
    return {name.removeprefix("svc_"): value for name, value in mia.svc_efficacy(*model.judged).items()}


def logistic_attack(model: Subject) -> Found:
    """Accuracy of telling forget from test samples by their loss, in [0, 1]; chance is 0.5."""
    return {"": mia.logistic_attack(model["forget"], model["test"], seed=model.seed)}


def loss_attack(model: Subject) -> Found:
    """AUC and TPR at low FPR of telling forget from test samples by their loss, in [0, 1]."""
    return mia.loss_attack(model["forget"], model["test"], model.seed)


def feature_entanglement(model: Subject) -> Found:
    """E_Var (higher: more entangled) and E_W1, E_W2 (distances, lower: more entangled) of forget and retain set."""
    forget, retain = model["forget"], model["retain"]
    if not forget.features.shape[1]:
        raise Unavailable("features were not collected")
    pair, labels = (forget.features, retain.features), (forget.labels, retain.labels)
    variance = functools.partial(entanglement.variance_entanglement, seed=model.seed)
    measures = {"variance": variance}
    for p in (1, 2):
        measures[f"wasserstein_{p}"] = functools.partial(entanglement.wasserstein, p=p, seed=model.seed)
    measures["wasserstein_released"] = functools.partial(
        entanglement.wasserstein, normalisation="released", seed=model.seed
    )
    found: Found = {}
    for name, measure in measures.items():
        found[name] = measure(*pair)
        try:
            if labels[0] is not None and name in ("wasserstein_1", "wasserstein_2"):  # one method for all classes
                measure = functools.partial(measure, method=entanglement.class_method(*labels))
            found[f"{name}_class_wise"] = entanglement.class_wise(measure, *pair, *labels)
        except Unavailable as reason:
            found[f"{name}_class_wise"] = Absent(str(reason))
    for name in ("variance", "variance_class_wise"):
        raw = found[name]
        released = name.replace("variance", "variance_released")
        found[released] = raw if isinstance(raw, Absent) else entanglement.released_scale(raw)
    return found


# ---- with shadow models ----


def lira_attack(model: Subject) -> Found:
    """AUC and TPR at low FPR of LiRA (offline), forget against test samples, in [0, 1]."""
    scores = {
        split: shadow.lira(_clipped(model[split]), np.stack([_clipped(_split(s, split)) for s in _shadows(model)]))
        for split in ("forget", "test")
    }
    return attack_rates(scores["forget"], scores["test"], model.seed)


def rmia_attack(model: Subject) -> Found:
    """AUC and TPR at low FPR of RMIA (offline), in [0, 1]; one half of the test set is the population, the other half
    are the non-members."""
    values, means = {}, {}
    for split in ("forget", "test"):
        values[split] = model[split].confidence
        means[split] = np.mean([_split(s, split).confidence for s in _shadows(model)], 0)
    order = np.random.default_rng([model.seed, 12]).permutation(len(values["test"]))
    half = len(order) // 2
    if half == 0:
        raise Unavailable("needs two test samples")
    population = order[:half], order[half:]
    z = values["test"][population[0]], means["test"][population[0]]
    members = shadow.rmia(values["forget"], means["forget"], *z, a=model.rmia_a)
    others = shadow.rmia(values["test"][population[1]], means["test"][population[1]], *z, a=model.rmia_a)
    return attack_rates(members, others, model.seed)


# ---- against the retrained model ----


def tow(model: Subject, reference: Subject) -> Found:
    """Tug-of-War, absolute: in [0, 1], 1 is the retrained model's accuracies."""
    return {"": of_gaps(_gaps(model, reference, ACCURACIES), tug_of_war)}


def tow_signed(model: Subject, reference: Subject) -> Found:
    """Tug-of-War of the released code: may exceed 1, rewards forgetting more than the retrained model."""
    return {"": of_gaps(_gaps(model, reference, ACCURACIES), functools.partial(tug_of_war, signed=True))}


def tow_mia(model: Subject, reference: Subject) -> Found:
    """Tug-of-War with the SVC attack on the confidence in place of the forget accuracy, in [0, 1]."""
    gaps = {**_gaps(model, reference, ("retain", "test")), "mia": _mia_gap(model, reference)}
    return {"": of_gaps(gaps, tug_of_war_mia)}


def gap_to_retrained(model: Subject, reference: Subject) -> Found:
    """Average gap to the retrained model: unlearning, retain and test accuracy, and MIA efficacy, in [0, 1]."""
    gaps = {**_gaps(model, reference, ACCURACIES), "mia": _mia_gap(model, reference)}
    return {"": of_gaps(gaps, average_gap)}


def agreement(model: Subject, reference: Subject) -> Found:
    """Share of predictions that are the retrained model's, in [0, 1]."""
    return {split: prediction_agreement(model[split], reference[split]) for split in model.splits}


def divergence(model: Subject, reference: Subject) -> Found:
    """Mean Jensen-Shannon divergence to the retrained model's probabilities, in [0, 1] bit."""
    return {split: jensen_shannon(model[split], reference[split]) for split in model.splits}


# ---- of sets of models ----


def klom_by_split(model: Subject) -> Found:
    """KLoM, KL(unlearned || retrained) of margins over sets of models, in nats: mean and 95th percentile of samples.
    Equal sets do not give 0 but the noise of so many models: "null" is one half of the retrained models against the
    other half (half as many models, so the noise of all is smaller). Intervals are over samples, for the models at
    hand."""
    found: Found = {}
    for split in model.splits:
        unlearned, retrained = _margins(model, split, LEAST_MODELS)
        for name, value in klom_summary(unlearned, retrained).items():
            found[f"{split}/{name}"] = value
        for name, value in klom_summary(retrained[::2], retrained[1::2]).items():
            found[f"{split}/{name}_null"] = value
    return found


def u_lira(model: Subject) -> Found:
    """U-LiRA: accuracy and AUC of telling unlearned from retrained models by forget margins, in [0, 1]; 0.5 is best."""
    return u_lira_summary(*_margins(model, "forget", least=4))


def quality(model: Subject) -> Found:
    """Forgetting quality of the NeurIPS 2023 competition: F in [0, 1], and the final score with its utility ratios. The
    best F depends on the number of models: "F_null" is that of one half of the retrained models against the other
    half."""
    unlearned, retrained = _margins(model, "forget", LEAST_MODELS)
    found = {
        "F": forgetting_quality(unlearned, retrained),
        "F_null": forgetting_quality(retrained[::2], retrained[1::2]),
    }
    try:
        accuracies = [
            tuple(float(np.mean([accuracy_of(_split(s, split)).value for s in models])) for split in ("retain", "test"))
            for models in (model.unlearned, model.retrained)
        ]
        score = final_score(found["F"].value, *accuracies)
        return {**found, "final": Estimate(score, found["F"].n, method="F x RA x TA ratios")}
    except (Unavailable, ValueError) as reason:
        return {**found, "final": Absent(str(reason))}


@dataclass(frozen=True)
class Metric:
    """compute: Subject -> {key: value}, or for `needs="reference"` (Subject, reference Subject) -> {key: value}.
    better: "higher", "lower", or "reference": closest to the retrained model's own value. classes: absent for models
    without classes (regression, several labels a sample)."""

    compute: Callable[..., Found]
    better: str
    needs: str = "model"
    classes: bool = True


METRICS = {
    "tug_of_war": Metric(tow, "higher", "reference"),
    "tug_of_war_signed": Metric(tow_signed, "higher", "reference"),
    "tug_of_war_mia": Metric(tow_mia, "higher", "reference"),
    "average_gap": Metric(gap_to_retrained, "lower", "reference"),
    "accuracy": Metric(accuracy_by_split, "reference"),
    "unlearning_accuracy": Metric(unlearning_accuracy, "reference"),
    "loss": Metric(loss_by_split, "reference", classes=False),
    "agreement": Metric(agreement, "higher", "reference"),
    "jensen_shannon": Metric(divergence, "lower", "reference"),
    "mia_loss": Metric(loss_attack, "reference", classes=False),
    "mia_logistic": Metric(logistic_attack, "reference", classes=False),
    "mia_svc": Metric(svc_attack, "reference"),
    "mia_lira": Metric(lira_attack, "reference"),
    "mia_rmia": Metric(rmia_attack, "reference"),
    "entanglement": Metric(feature_entanglement, "reference", classes=False),
    "klom": Metric(klom_by_split, "lower", "sets"),
    "u_lira": Metric(u_lira, "lower", "sets"),
    "forgetting_quality": Metric(quality, "higher", "sets"),
}


def _clipped(outputs: Outputs) -> np.ndarray:
    return np.clip(outputs.margin, -mia.CLIP, mia.CLIP)


def _split(splits: Splits, split: str) -> Outputs:
    if split not in splits:
        raise Unavailable(f"no {split} set was given")
    return splits[split]


def _shadows(model: Subject) -> Sequence[Splits]:
    if not model.shadows:
        raise Unavailable("no shadow models were given")
    return model.shadows


def _margins(model: Subject, split: str, least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    for name, models in (("unlearned", model.unlearned), ("retrained", model.retrained)):
        if len(models) < least:
            raise Unavailable(
                f"needs at least {least} {name} models made with different seeds, {len(models)} were given"
            )
    return tuple(np.stack([_clipped(_split(s, split)) for s in m]) for m in (model.unlearned, model.retrained))


def _gaps(model: Subject, reference: Subject, splits: Sequence[str]) -> dict[str, Gap]:
    return {split: gap(model[split], reference[split]) for split in splits}


def _mia_gap(model: Subject, reference: Subject) -> Gap:
    flags = [subject.judged[0]["confidence"] for subject in (model, reference)]
    for found in flags:
        if isinstance(found, Absent):
            raise Unavailable(found.reason)
    return paired_gap(*(found.astype(float) for found in flags))
