"""Longer looks at a model: memorization scores, loss landscapes, relearning attacks, forget sets chosen by scores. They
train or probe copies of models; what is read off one forward pass stands in `metrics`."""

from .figures import new_figure
from .fine_tuning import fine_tune
from .fitting import TrainerFit
from .forget_sets import forget_sets_by_score, load_scores
from .landscape_comparison import compare_landscapes, draw_landscapes, landscape_numbers
from .memorization import Memorization, estimate_memorization
from .proxies import MemorizationProxies, holdout_retraining, rank_correlations
from .relearning import Relearning, RelearningCurve, relearning_attack

__all__ = [
    "Memorization",
    "MemorizationProxies",
    "Relearning",
    "RelearningCurve",
    "TrainerFit",
    "compare_landscapes",
    "draw_landscapes",
    "estimate_memorization",
    "fine_tune",
    "forget_sets_by_score",
    "holdout_retraining",
    "landscape_numbers",
    "load_scores",
    "new_figure",
    "rank_correlations",
    "relearning_attack",
]
