"""Cheap stand-ins for memorization scores: what one training run, or one more, says of a sample.

learning events     means over the epochs of confidence p_y, max confidence, entropy, correctness; and the number of
                    forgetting events, right -> wrong from one epoch to the next (Toneva et al., arXiv 1812.05159)
holdout retraining  fine-tune the model on held-out data; the symmetric KL divergence of its answers before and after,
                    [KL(p || q) + KL(q || p)] / 2
Both as in Zhao & Triantafillou, arXiv 2410.16516 (RUM's proxies). All are turned so that high means memorized.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import log_softmax
from torch import nn
from transformers import TrainerCallback

from ..metrics import collect_outputs
from .fine_tuning import fine_tune

PROXIES = ("confidence", "max_confidence", "entropy", "accuracy", "forgetting_events")


class MemorizationProxies(TrainerCallback):
    """Looks at every sample at the end of each epoch, with one forward pass and without gradients.

    dataset: the training set in its own order, without augmentation. In a distributed run each process looks at all.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        batch_size: int = 128,
        collator: Callable | None = None,
        label_names: Sequence[str] = ("labels",),
    ):
        self._dataset = dataset
        self._options = {"batch_size": batch_size, "collator": collator, "label_names": label_names}
        self._sums: dict[str, np.ndarray] = {}
        self._before: np.ndarray | None = None
        self._ever: np.ndarray | None = None
        self.epochs = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._sums, self._before, self._ever, self.epochs = {}, None, None, 0

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        outputs = collect_outputs(model, self._dataset, features=False, progress=False, **self._options)
        if len(outputs) != len(self._dataset):
            raise ValueError("dataset has samples without a label that counts: they would have no score.")
        right = outputs.correct > 0.5
        forgotten = np.zeros(len(right)) if self._before is None else (self._before & ~right).astype(float)
        looks = {
            "confidence": outputs.confidence,
            "max_confidence": outputs.max_confidence,
            "entropy": outputs.entropy,
            "accuracy": outputs.correct,
            "forgetting_events": forgotten,
        }
        self._sums = {name: self._sums.get(name, 0) + values for name, values in looks.items()}
        self._ever = right if self._ever is None else self._ever | right
        self._before = right
        self.epochs += 1

    def scores(self) -> dict[str, np.ndarray]:
        """{proxy: (N,)}, high means memorized: 1 - mean confidence, 1 - mean max confidence, mean entropy, 1 - mean
        accuracy, and forgetting events, of which a sample that was never right has as many as there were epochs.

        Raises ValueError before the first epoch has ended.
        """
        if not self.epochs:
            raise ValueError("No epoch has ended yet: pass the callback to a Trainer and train.")
        means = {name: self._sums[name] / self.epochs for name in PROXIES}
        turned = {name: 1 - means[name] for name in ("confidence", "max_confidence", "accuracy")}
        events = np.where(self._ever, self._sums["forgetting_events"], self.epochs)
        return {**means, **turned, "forgetting_events": events}


def holdout_retraining(
    model: nn.Module,
    holdout: Any,
    dataset: Any,
    *,
    steps: int = 100,
    learning_rate: float = 1e-3,
    batch_size: int = 64,
    seed: int = 0,
    collator: Callable | None = None,
    label_names: Sequence[str] = ("labels",),
    progress: bool = True,
) -> np.ndarray:
    """Symmetric KL divergence in nats, (N,), >= 0, of each sample of `dataset`; high means memorized.

    holdout: data that the model was not trained on, e.g. its test set. A copy is fine-tuned on it with AdamW; the
    model is not touched. (The authors train with learning rate 0.1 for up to 30 epochs.) Raises ValueError for token
    models.
    """
    shared = {"collator": collator, "label_names": label_names, "progress": progress, "batch_size": batch_size}
    before = collect_outputs(model, dataset, features=False, name="before", **shared)
    if before.logits is None:
        raise ValueError("Holdout retraining compares class probabilities: it needs a classifier.")
    trained = fine_tune(
        model,
        holdout,
        steps,
        learning_rate=learning_rate,
        seed=seed,
        name="holdout retraining",
        **shared,
    )
    after = collect_outputs(trained, dataset, features=False, name="after", **shared)
    p, q = (log_softmax(outputs.logits.astype(np.float64), axis=1) for outputs in (before, after))
    return np.maximum(((np.exp(p) - np.exp(q)) * (p - q)).sum(1) / 2, 0)


def rank_correlations(scores: np.ndarray, proxies: dict[str, np.ndarray]) -> dict[str, float]:
    """{proxy: Spearman's rank correlation with the memorization scores, in [-1, 1]}.

    Rows without a score are left out. nan where it is not defined: a proxy, or the scores, that are all equal.
    """
    from scipy.stats import spearmanr

    kept = ~np.isnan(scores)
    pairs = {name: (scores[kept], values[kept]) for name, values in proxies.items()}
    return {
        name: float(spearmanr(*pair).statistic) if all(len(np.unique(x)) > 1 for x in pair) else float("nan")
        for name, pair in pairs.items()
    }
