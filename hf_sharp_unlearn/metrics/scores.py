"""What the logits say of one sample: loss, correctness, confidence, entropy, modified entropy, margin.

p = softmax(z), y the label, all logarithms natural

loss               -log p_y
correct            1 if argmax_i z_i = y
confidence         p_y
max confidence     max_i p_i
entropy            -sum_i p_i log p_i
modified entropy   -(1 - p_y) log p_y - sum_{i != y} p_i log(1 - p_i)     Song & Mittal, USENIX Security 2021, eq. 8
margin             log p_y - log(1 - p_y) = z_y - log sum_{i != y} e^{z_i}    "phi", LiRA, arXiv 2112.03570

Modified entropy is 0 for a confident right answer and grows for a confident wrong one, where plain entropy is 0 in
both. (Code released with SalUn, RUM and Sharp MinMax has log p_i for log(1 - p_i), and its indexing makes every class
that occurs in the batch a label of every sample.)
"""

import torch
from torch import Tensor

SCORES = ("loss", "correct", "confidence", "max_confidence", "entropy", "modified_entropy", "margin")
CHUNK = 1 << 24  # logits looked at together: bounds the memory for vocabularies of 100,000 tokens


def sample_scores(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return {score: (N,) float32}.

    logits: (N, classes), at least two classes; -inf (a class ruled out) is allowed. labels: (N,) integers.

    Raises ValueError for other shapes, labels that are no class, and logits that are nan or +inf.
    """
    if logits.ndim != 2 or logits.shape[1] < 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"Logits of shape {tuple(logits.shape)} and labels of shape {tuple(labels.shape)}: need (N, classes) with "
            "at least two classes, and (N,)."
        )
    if len(labels) and not (0 <= int(labels.min()) and int(labels.max()) < logits.shape[1]):
        raise ValueError(
            f"Labels lie in [{int(labels.min())}, {int(labels.max())}], the logits have {logits.shape[1]} classes "
            f"(0 to {logits.shape[1] - 1}): map the labels to the model's classes."
        )
    rows = max(1, CHUNK // logits.shape[1])
    parts = [
        _scores(piece.float(), labels[start : start + rows])
        for start, piece in ((start, logits[start : start + rows]) for start in range(0, len(logits), rows))
    ]
    return {name: torch.cat([part[name] for part in parts]) if parts else logits.new_empty(0) for name in SCORES}


def _scores(z: Tensor, labels: Tensor) -> dict[str, Tensor]:
    bad = ~(z < torch.inf).all(1) | (z == -torch.inf).all(1)  # the first is true of nan too
    if bool(bad.any()):
        raise ValueError(
            f"The logits of {int(bad.sum())} of {len(z)} samples are nan, +inf or -inf for every class: the model has "
            "diverged."
        )
    y = labels.long()[:, None]
    log_p = z.log_softmax(1)
    p = log_p.exp()
    # log(1 - p_i): where p_i is near 1 only the sum over the other classes is exact, and only the top class can be.
    top = z.argmax(1, keepdim=True)
    others = z.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True)
    log_rest = torch.log1p(-p).scatter(1, top, others - z.logsumexp(1, keepdim=True))
    log_p_y, p_y = log_p.gather(1, y)[:, 0], p.gather(1, y)[:, 0]
    log_rest_y = log_rest.gather(1, y)[:, 0]
    entropy = torch.special.entr(p).sum(1)
    wrong = torch.where(p > 0, p * log_rest, 0).scatter(1, y, 0).sum(1)
    right = torch.where(p_y < 1, log_rest_y.exp() * log_p_y, 0)
    margin = log_p_y - log_rest_y
    return {
        "loss": 0 - log_p_y,  # 0, not -0
        "correct": (top[:, 0] == y[:, 0]).float(),
        "confidence": p_y,
        "max_confidence": p.gather(1, top)[:, 0],
        "entropy": entropy,
        "modified_entropy": 0 - right - wrong,
        "margin": margin,
    }
