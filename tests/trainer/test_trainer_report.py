"""The report from the trainer: its own sets, what is left alone, bf16."""

import pytest
from parts import Mlp, assert_same, rows, weights_of

from hf_sharp_unlearn import NegGradPlus, Relearning
from hf_sharp_unlearn.analysis import relearning_attack

ATTACK = Relearning(samples=4, steps=4, every=2, learning_rate=0.05)


def test_the_trainer_reports_on_its_own_sets(make_trainer, tmp_path):
    trainer = make_trainer(NegGradPlus(alpha=0.9), trainer={"eval_dataset": rows(15, seed=9)})
    trainer.train()
    before = weights_of(trainer.model)
    report = trainer.evaluate_unlearning(Mlp(seed=3), str(tmp_path / "report"), relearning=ATTACK)
    assert report.samples == {"forget": 6, "retain": 18, "test": 15}
    assert (tmp_path / "report" / "report.json").exists() and (tmp_path / "report" / "accuracy.png").exists()
    metrics = trainer.evaluate()
    for split in report.samples:
        assert report[f"accuracy/{split}"].value == pytest.approx(metrics[f"eval_{split}_accuracy"])
        assert report[f"loss/{split}"].value == pytest.approx(metrics[f"eval_{split}_loss"], rel=1e-5)
    assert_same(before, weights_of(trainer.model))
    trainer.train()
    small = trainer.evaluate_unlearning(svc_samples=0, test=None)
    assert "test" not in small.samples and small.settings["svc_samples"] == 0


def test_a_bf16_run_reports_under_autocast_and_goes_on_in_bf16(make_trainer):
    """accelerate wraps forward; a copy of the model must run its own forward, not that of the model."""
    trainer = make_trainer(NegGradPlus(alpha=0.9), trainer={"eval_dataset": rows(15, seed=9)}, bf16=True)
    trainer.train()
    before, forward = weights_of(trainer.model), trainer.model.forward
    report = trainer.evaluate_unlearning(relearning=ATTACK)
    assert_same(before, weights_of(trainer.model))
    assert trainer.model.forward == forward
    expected = relearning_attack(trainer.model, trainer.forget_dataset, trainer.retain_dataset, ATTACK, seed=42,
                                 progress=False)  # fmt: skip
    assert report.relearning["unlearned"] == expected
    first = report.relearning["unlearned"]["retain"].accuracy
    assert any(point.value != first[0].value for point in first) or first[0].value in (0, 1)
