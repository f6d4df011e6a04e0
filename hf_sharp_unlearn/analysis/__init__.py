"""Longer looks at a model: memorization scores, loss landscapes, relearning attacks."""

from .fine_tuning import fine_tune
from .fitting import TrainerFit
from .forget_sets import forget_sets_by_score, load_scores
from .landscape import Landscape, Surface
from .memorization import Memorization, estimate_memorization
from .proxies import MemorizationProxies, holdout_retraining, rank_correlations
from .relearning import Relearning, RelearningCurve, relearning_attack

__all__ = [
    "Landscape",
    "Memorization",
    "MemorizationProxies",
    "Relearning",
    "RelearningCurve",
    "Surface",
    "TrainerFit",
    "estimate_memorization",
    "fine_tune",
    "forget_sets_by_score",
    "holdout_retraining",
    "load_scores",
    "rank_correlations",
    "relearning_attack",
]
