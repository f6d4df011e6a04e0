"""Every metric by name, with what it is computed from and which way is better: METRICS.

A metric is one function that returns {key: Estimate or Absent}; an input that is missing raises `Unavailable`, and the
report shows the reason instead of a number.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from . import entanglement, mia, shadow
from .agreement import jensen_shannon, prediction_agreement
from .estimate import Absent, Estimate, Unavailable, mean, share
from .forgetting_quality import final_score, forgetting_quality
from .klom import klom_summary
from .outputs import Outputs
from .roc import attack_rates
from .tow import average_gap, tug_of_war, tug_of_war_mia
from .u_lira import u_lira_summary

Splits = Mapping[str, Outputs]
Found = dict[str, Estimate | Absent]
RESAMPLES = 2000


@dataclass(eq=False)
class Subject:
    """A model under examination: its outputs by split ("forget", "retain", "test"), and those of models around it.

    shadows: models trained without forget and test samples. unlearned, retrained: sets of models made in the same way
    as this one, and as the retrained model, with different seeds. svc_samples: a side, at most; 0 switches the SVC
    attacks off. rmia_a: see `shadow.rmia`.
    """

    splits: Splits
    seed: int = 0
    svc_samples: int = mia.SVC_SAMPLES
    shadows: Sequence[Splits] = ()
    unlearned: Sequence[Splits] = ()
    retrained: Sequence[Splits] = ()
    rmia_a: float = 0.3

    def __getitem__(self, split: str) -> Outputs:
        if split not in self.splits:
            raise Unavailable(f"no {split} set was given")
        return self.splits[split]

    @functools.cached_property
    def judged(self) -> tuple[dict[str, np.ndarray], int]:
        """The SVC attacks: see `mia.svc_judgements`."""
        if self.svc_samples == 0:
            raise Unavailable("the SVC attacks were switched off (svc_samples=0)")
        return mia.svc_judgements(self["retain"], self["test"], self["forget"], self.svc_samples, self.seed)


# ---- of one model ----


def accuracy_by_split(model: Subject) -> Found:
    """Share of correct predictions (of items, for token models), in [0, 1]."""
    return {split: _accuracy(outputs) for split, outputs in model.splits.items()}


def loss_by_split(model: Subject) -> Found:
    """Mean cross-entropy over samples, in nats, >= 0."""
    found = {split: mean(outputs.loss) for split, outputs in model.splits.items()}
    return {
        split: loss if loss.low is None else dataclasses.replace(loss, low=max(loss.low, 0.0))
        for split, loss in found.items()
    }


def unlearning_accuracy(model: Subject) -> Found:
    """1 - accuracy on the forget set, in [0, 1] (UA of arXiv 2304.04934)."""
    found = _accuracy(model["forget"])
    turned = [None if end is None else 1 - end for end in (found.high, found.low)]
    return {"": Estimate(1 - found.value, found.n, *turned, found.method)}


def svc_attack(model: Subject) -> Found:
    """Share of the forget set that an SVC on model outputs takes for non-members (forget efficacy), in [0, 1]."""
    found = mia.svc_efficacy(*model.judged)
    if "svc_probabilities" not in found:
        found["svc_probabilities"] = Absent("token probabilities are not kept")
    return {name.removeprefix("svc_"): value for name, value in found.items()}


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
    variance = functools.partial(entanglement.variance_entanglement, seed=model.seed)
    measures = {"variance": variance, "variance_released": functools.partial(variance, normalisation="released")}
    for p in (1, 2):
        measures[f"wasserstein_{p}"] = functools.partial(entanglement.wasserstein, p=p, seed=model.seed)
    released = functools.partial(entanglement.wasserstein, normalisation="released", seed=model.seed)
    measures["wasserstein_released"] = released
    found: Found = {}
    for name, measure in measures.items():
        found[name] = measure(forget.features, retain.features)
        try:
            per_class = (forget.features, retain.features, forget.labels, retain.labels)
            found[f"{name}_class_wise"] = entanglement.class_wise(measure, *per_class)
        except Unavailable as reason:
            found[f"{name}_class_wise"] = Absent(str(reason))
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
    return {"": _tow(model, reference, signed=False)}


def tow_signed(model: Subject, reference: Subject) -> Found:
    """Tug-of-War of the released code: may exceed 1, rewards forgetting more than the retrained model."""
    return {"": _tow(model, reference, signed=True)}


def tow_mia(model: Subject, reference: Subject) -> Found:
    """Tug-of-War with the SVC attack on the confidence in place of the forget accuracy, in [0, 1]."""
    pairs = _pairs(model, reference, ("retain", "test"))
    pairs["mia"] = model.judged[0]["confidence"], reference.judged[0]["confidence"]
    return {"": _of_pairs(pairs, tug_of_war_mia, model.seed)}


def gap_to_retrained(model: Subject, reference: Subject) -> Found:
    """Average gap to the retrained model: unlearning, retain and test accuracy, and MIA efficacy, in [0, 1]."""
    pairs = _pairs(model, reference, ("retain", "forget", "test"))
    pairs["mia"] = model.judged[0]["confidence"], reference.judged[0]["confidence"]
    return {"": _of_pairs(pairs, average_gap, model.seed)}


def agreement(model: Subject, reference: Subject) -> Found:
    """Share of predictions that are the retrained model's, in [0, 1]."""
    return {split: prediction_agreement(model[split], reference[split]) for split in model.splits}


def divergence(model: Subject, reference: Subject) -> Found:
    """Mean Jensen-Shannon divergence to the retrained model's probabilities, in [0, 1] bit."""
    return {split: jensen_shannon(model[split], reference[split]) for split in model.splits}


# ---- of sets of models ----


def klom_by_split(model: Subject) -> Found:
    """KLoM, KL(unlearned || retrained) of margins over sets of models, in nats: mean and 95th percentile of samples."""
    return {
        f"{split}/{name}": value
        for split in model.splits
        for name, value in klom_summary(*_margins(model, split)).items()
    }


def u_lira(model: Subject) -> Found:
    """U-LiRA: accuracy and rates of telling unlearned from retrained models by forget margins, in [0, 1]."""
    return u_lira_summary(*_margins(model, "forget", least=3), seed=model.seed)


def quality(model: Subject) -> Found:
    """Forgetting quality of the NeurIPS 2023 competition: F in [0, 1], and the final score with its utility ratios."""
    found = forgetting_quality(*_margins(model, "forget", least=3))
    try:
        accuracies = [
            tuple(float(np.mean([_accuracy(_split(s, split)).value for s in models])) for split in ("retain", "test"))
            for models in (model.unlearned, model.retrained)
        ]
        final: Estimate | Absent = Estimate(final_score(found.value, *accuracies), found.n, method="F x RA x TA ratios")
    except (Unavailable, ValueError) as reason:
        final = Absent(str(reason))
    return {"F": found, "final": final}


@dataclass(frozen=True)
class Metric:
    """compute: Subject -> {key: value}, or for `needs="reference"` (Subject, reference Subject) -> {key: value}.
    better: "higher", "lower", or "reference": closest to the retrained model's own value."""

    compute: Callable[..., Found]
    better: str
    needs: str = "model"


METRICS = {
    "tug_of_war": Metric(tow, "higher", "reference"),
    "tug_of_war_signed": Metric(tow_signed, "higher", "reference"),
    "tug_of_war_mia": Metric(tow_mia, "higher", "reference"),
    "average_gap": Metric(gap_to_retrained, "lower", "reference"),
    "accuracy": Metric(accuracy_by_split, "reference"),
    "unlearning_accuracy": Metric(unlearning_accuracy, "reference"),
    "loss": Metric(loss_by_split, "reference"),
    "agreement": Metric(agreement, "higher", "reference"),
    "jensen_shannon": Metric(divergence, "lower", "reference"),
    "mia_loss": Metric(loss_attack, "reference"),
    "mia_logistic": Metric(logistic_attack, "reference"),
    "mia_svc": Metric(svc_attack, "reference"),
    "mia_lira": Metric(lira_attack, "reference"),
    "mia_rmia": Metric(rmia_attack, "reference"),
    "entanglement": Metric(feature_entanglement, "reference"),
    "klom": Metric(klom_by_split, "lower", "sets"),
    "u_lira": Metric(u_lira, "lower", "sets"),
    "forgetting_quality": Metric(quality, "higher", "sets"),
}


def _accuracy(outputs: Outputs) -> Estimate:
    if outputs.logits is not None:
        return share(outputs.correct)
    found = mean(outputs.correct)  # of samples: tokens of one sample are not independent
    whole = float(np.average(outputs.correct, weights=outputs.items))
    if found.low is None:
        return Estimate(whole, found.n, method="share of tokens")
    half = found.high - found.value
    return Estimate(whole, found.n, max(whole - half, 0.0), min(whole + half, 1.0), "share of tokens, t over samples")


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


def _pairs(model: Subject, reference: Subject, splits: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {split: (model[split].correct, reference[split].correct) for split in splits}


def _tow(model: Subject, reference: Subject, signed: bool) -> Estimate:
    pairs = _pairs(model, reference, ("retain", "forget", "test"))
    return _of_pairs(pairs, functools.partial(tug_of_war, signed=signed), model.seed)


def _of_pairs(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], score: Callable[..., float], seed: int) -> Estimate:
    """score(means of the one model, means of the other) with its interval; samples stay in pairs.

    A sample is one of four kinds, by whether each model is right. Shares of kinds are drawn from their posterior under
    Jeffreys' prior, so that "none of 72" is not taken for "none"; for values between 0 and 1 (tokens) samples are
    drawn.
    """
    draw = np.random.default_rng([seed, 13])
    value = score(*({key: float(np.mean(pair[i])) for key, pair in pairs.items()} for i in (0, 1)))
    drawn: list[dict[str, np.ndarray]] = [{}, {}]
    for key, pair in pairs.items():
        values = np.stack(pair, 1)
        kinds, counts = np.unique(values, axis=0, return_counts=True)
        if np.isin(values, (0, 1)).all():
            kinds = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
            counts = (values[:, None] == kinds).all(-1).sum(0)
            weights = draw.dirichlet(counts + 0.5, RESAMPLES)
        else:
            weights = draw.multinomial(counts.sum(), counts / counts.sum(), RESAMPLES) / counts.sum()
        for i in (0, 1):
            drawn[i][key] = np.clip(weights @ kinds[:, i], 0, 1)
    scores = [score(*({key: float(v[b]) for key, v in side.items()} for side in drawn)) for b in range(RESAMPLES)]
    low, high = np.quantile(scores, [0.025, 0.975])
    n = min(len(pair[0]) for pair in pairs.values())
    return Estimate(value, n, min(float(low), value), max(float(high), value), "posterior interval, samples in pairs")
