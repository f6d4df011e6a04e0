"""Membership inference without shadow models: does an attacker take the forget set for training data?

SVC family    an RBF SVC (C = 3, gamma = 1 / features) learns to tell retain samples (members) from test samples by one
              statistic of the model's output, and judges the forget set. Forget efficacy = share of the forget set that
              it takes for NON-members. Of SalUn (arXiv 2310.12508) and Jia et al. (2304.04934); statistics:
              correctness, confidence, entropy, modified entropy (Song & Mittal 2021), the whole probability vector.
logistic      accuracy of a logistic regression on the loss that tells forget from test samples, cross-validated and
              balanced (Kurmanji et al., arXiv 2302.09880; NeurIPS 2023 starting kit); 0.5 is chance.
loss          AUC and TPR at low FPR of the loss itself as the score: forget set against test set. The order of the
              losses is taken from the margin, which does not saturate (token models: the loss, a mean over tokens).

None has an ideal of 0 or 1: the retrained model's own value is the ideal, because test and forget set need not be alike
(mislabelled samples, one class). Retain members are drawn at random, balanced over classes, with as many as there are
test samples; the released code takes the first ones in the order of the data set.
"""

import numpy as np
from scipy.special import softmax

from .estimate import Absent, Estimate, Unavailable, share
from .outputs import Outputs
from .roc import attack_rates

STATISTICS = ("correctness", "confidence", "entropy", "modified_entropy", "probabilities")
SVC_SAMPLES = 5000  # a kernel SVC needs time between n^2 and n^3
CLIP = 100.0  # of losses and margins, as SCRUB and KLoM do


def svc_judgements(
    retain: Outputs, test: Outputs, forget: Outputs, samples: int = SVC_SAMPLES, seed: int = 0
) -> tuple[dict[str, np.ndarray | Absent], int]:
    """({statistic: (N,) True where a forget sample is taken for a non-member}, training samples a side).

    samples: at most so many a side; both sides have the same number. A statistic that is the same for all of them, and
    the probabilities of token models, are `Absent`.
    """
    from sklearn.svm import SVC

    size = min(samples, len(retain), len(test))
    if size < 2:
        raise Unavailable(f"needs two retain and two test samples, has {len(retain)} and {len(test)}")
    draw = np.random.default_rng([seed, 7])
    rows = balanced_rows(retain, size, draw), balanced_rows(test, size, draw)
    judged: dict[str, np.ndarray | Absent] = {}
    for name in STATISTICS:
        groups = [_statistic(outputs, name) for outputs in (retain, test, forget)]
        if groups[0] is None:
            judged[name] = Absent("token probabilities are not kept")
            continue
        x = np.concatenate([groups[0][rows[0]], groups[1][rows[1]]])
        if (x == x[0]).all():
            judged[name] = Absent(f"the {name} is the same for all samples: there is nothing to learn from")
            continue
        attacker = SVC(C=3, gamma="auto", kernel="rbf", cache_size=1000)
        attacker.fit(x, np.repeat([1, 0], size))
        judged[name] = attacker.predict(groups[2]) == 0
    return judged, size


def svc_efficacy(judged: dict[str, np.ndarray | Absent], size: int) -> dict[str, Estimate | Absent]:
    """{"svc_" + statistic: forget efficacy in [0, 1]} of `svc_judgements`; the retrained model's value is the ideal."""
    method = f"Wilson interval for the attacker at hand, trained on {size} samples a side"
    return {
        f"svc_{name}": flags if isinstance(flags, Absent) else share(flags, method) for name, flags in judged.items()
    }


def balanced_rows(outputs: Outputs, size: int, draw: np.random.Generator) -> np.ndarray:
    """`size` rows at random, the same number of each class as far as there are enough; sorted."""
    order = draw.permutation(len(outputs))
    if outputs.labels is not None:
        labels = outputs.labels[order]
        rank = np.zeros(len(order), np.int64)  # a sample's place among those of its class
        for label in np.unique(labels):
            rank[labels == label] = np.arange((labels == label).sum())
        order = order[np.argsort(rank, kind="stable")]
    return np.sort(order[:size])


def logistic_attack(forget: Outputs, test: Outputs, folds: int = 5, seed: int = 0) -> Estimate:
    """Cross-validated accuracy in [0, 1]; each sample is judged once, by a regression that has not seen it.

    Raises Unavailable with fewer than `folds` samples in a set.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    size = min(len(forget), len(test))
    if size < folds:
        raise Unavailable(f"needs {folds} forget and test samples, has {len(forget)} and {len(test)}")
    draw = np.random.default_rng([seed, 8])
    losses = [np.clip(s.loss, 0, CLIP)[draw.permutation(len(s))[:size]] for s in (forget, test)]
    x, y = np.concatenate(losses)[:, None], np.repeat([1, 0], size)
    x = (x - x.mean()) / (x.std() or 1.0)
    splits = StratifiedKFold(folds, shuffle=True, random_state=int(draw.integers(1 << 31)))
    guess = cross_val_predict(LogisticRegression(class_weight="balanced"), x, y, cv=splits)
    return share(guess == y, f"Wilson interval, {folds} folds, {size} samples a side")


def loss_attack(forget: Outputs, test: Outputs, seed: int = 0) -> dict[str, Estimate | Absent]:
    """AUC and TPR at 1 % and 0.1 % FPR of the loss as score."""
    return attack_rates(loss_score(forget), loss_score(test), seed)


def loss_score(outputs: Outputs) -> np.ndarray:
    """(N,) higher for a lower loss: the margin, which has the same order for classifiers; minus the loss for tokens."""
    return np.clip(-outputs.loss if outputs.logits is None else outputs.margin, -CLIP, CLIP)


def _statistic(outputs: Outputs, name: str) -> np.ndarray | None:
    if name == "correctness":
        return outputs.correct[:, None]
    if name != "probabilities":
        return np.clip(getattr(outputs, name), -CLIP, CLIP)[:, None]
    if outputs.logits is None:
        return None
    return softmax(outputs.logits.astype(np.float64), axis=1)
