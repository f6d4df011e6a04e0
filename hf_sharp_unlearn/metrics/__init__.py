"""What unlearning is judged by. Per-sample statistics come from one forward pass over a split (`collect_outputs`)."""

from .accuracy import accuracy, predicted_classes
from .agreement import jensen_shannon, prediction_agreement
from .compute import compute_metrics
from .entanglement import class_method, class_wise, variance_entanglement, wasserstein
from .estimate import Absent, Estimate, Unavailable, wilson
from .forgetting_quality import final_score, forgetting_epsilon, forgetting_quality
from .klom import klom, klom_summary
from .mia import logistic_attack, loss_attack, loss_score, svc_efficacy, svc_judgements
from .outputs import Outputs, accuracy_of, collect_outputs
from .roc import attack_rates, auc, roc_curve, tpr_at_fpr
from .scores import sample_scores
from .shadow import lira, rmia
from .subject import Subject
from .table import METRICS, Metric
from .tow import average_gap, tug_of_war, tug_of_war_mia
from .u_lira import u_lira, u_lira_summary

__all__ = [
    "Absent",
    "Estimate",
    "METRICS",
    "Metric",
    "Outputs",
    "Subject",
    "Unavailable",
    "accuracy",
    "accuracy_of",
    "attack_rates",
    "auc",
    "average_gap",
    "class_method",
    "class_wise",
    "collect_outputs",
    "compute_metrics",
    "final_score",
    "forgetting_epsilon",
    "forgetting_quality",
    "jensen_shannon",
    "klom",
    "klom_summary",
    "lira",
    "logistic_attack",
    "loss_attack",
    "loss_score",
    "predicted_classes",
    "prediction_agreement",
    "rmia",
    "roc_curve",
    "sample_scores",
    "svc_efficacy",
    "svc_judgements",
    "tpr_at_fpr",
    "tug_of_war",
    "tug_of_war_mia",
    "u_lira",
    "u_lira_summary",
    "variance_entanglement",
    "wasserstein",
    "wilson",
]
