"""Metrics that cannot be computed leave the others alone, and say why."""

import sys
from dataclasses import replace

import numpy as np
import torch

from hf_sharp_unlearn.metrics import Absent, Estimate, Outputs, Subject
from hf_sharp_unlearn.metrics.compute import compute_metrics


def outputs(seed):
    drawn = torch.Generator().manual_seed(seed)
    found = Outputs.from_logits(torch.randn(20, 3, generator=drawn), [i % 3 for i in range(20)])
    return replace(found, features=np.asarray(torch.randn(20, 4, generator=drawn)))


def test_a_package_that_is_missing_is_the_reason_of_the_metrics_that_need_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ot", None)
    subject = Subject({split: outputs(k) for k, split in enumerate(("forget", "retain", "test"))}, svc_samples=0)
    metrics, _ = compute_metrics({"unlearned": subject})
    assert metrics["entanglement"]["unlearned"] == Absent("the package ot is not installed here")
    assert isinstance(metrics["accuracy/forget"]["unlearned"], Estimate)
