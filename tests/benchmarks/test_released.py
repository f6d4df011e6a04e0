"""The released code's semantics: the loop makes the deviations that it lists; the command sets it beside the others."""

import shutil

import numpy as np
import torch
from parts import ROOT, images, timm_resnet

from hf_sharp_unlearn.benchmarks import released
from hf_sharp_unlearn.benchmarks.comparison import runs, tasks
from hf_sharp_unlearn.benchmarks.comparison.released_loop import released_sharp_minmax, smallest_gradient_mask
from hf_sharp_unlearn.benchmarks.parts.images import Images

RESULTS = ROOT / "benchmarks" / "results"


def batch(data):
    return {"pixel_values": torch.stack([r["pixel_values"] for r in data]),
            "labels": torch.tensor([r["labels"] for r in data])}  # fmt: skip


def test_the_released_mask_is_the_smallest_gradients():
    model, forget = timm_resnet().eval(), [batch(images(8))]
    masks = smallest_gradient_mask(model, forget, 0.3)
    grads = torch.autograd.grad(model(**forget[0]).loss, list(model.parameters()))
    size = torch.cat([grad.abs().reshape(-1) for grad in grads])
    mask = torch.cat([part.reshape(-1) for part in masks]).bool()
    assert size[mask].max() <= size[~mask].min() and mask.sum() == int(0.3 * len(mask))


def test_a_released_step_leaks_two_ascents_into_the_retain_part_and_decays_twice():
    """One step in float64 against the formulas, each half from its own weights."""
    torch.manual_seed(0)
    model = timm_resnet().double()
    retain, forget = (
        {k: v.double() if v.is_floating_point() else v for k, v in batch(images(8, seed=s)).items()} for s in (1, 2)
    )
    rate, decay, alpha, rho = 0.01, 0.1, 0.9, 0.5
    reference = timm_resnet().double()
    reference.load_state_dict(model.state_dict())
    masks = smallest_gradient_mask(reference, [forget], 0.3)
    reference.train()
    released_sharp_minmax(
        model, lambda epoch: iter([retain]), [forget], alpha=alpha, fraction=0.3, learning_rate=rate, epochs=1, rho=rho,
        momentum=0.0, weight_decay=decay,
    )  # fmt: skip

    def gradients(data, coefficient):
        return torch.autograd.grad(coefficient * reference(**data).loss, list(reference.parameters()))

    for data, coefficient, forgetting in ((retain, alpha, False), (forget, alpha - 1, True)):
        g0 = gradients(data, coefficient)
        start = [weight.detach().clone() for weight in reference.parameters()]
        length = sum((w.abs() * g).square().sum() for w, g in zip(start, g0, strict=True)).sqrt()
        for weight, w, g in zip(reference.parameters(), start, g0, strict=True):
            weight.data = w + rho * w**2 * g / length
        g1 = gradients(data, coefficient)
        for weight, w, a, b, m in zip(reference.parameters(), start, g0, g1, masks, strict=True):
            weight.data = w - rate * ((2 * a - m * b if forgetting else (1 - m) * b) + decay * w)
    for found, wanted in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)
    for found, wanted in zip(model.modules(), reference.modules(), strict=True):
        if isinstance(found, torch.nn.BatchNorm2d):
            assert found.momentum == wanted.momentum


def test_the_committed_table_comes_from_the_rows_of_the_comparison(tmp_path, monkeypatch, capsys):
    """Nothing is run again where the rows are there; the task is known by its name alone then."""
    data = Images(torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.long))
    task = tasks.Task(data, data, 1, np.zeros(1), "cifar100-mini")
    monkeypatch.setattr(runs, "task_of", lambda data, scores: task)
    shutil.copy(RESULTS / "vision_mini.csv", tmp_path)
    released.main(["--output-dir", str(tmp_path), "--work-dir", str(tmp_path / "work")])
    name = "released_mini_cifar100-mini.md"
    made = (tmp_path / name).read_text("utf-8")
    assert made == (RESULTS / name).read_text("utf-8") and made in capsys.readouterr().out
    assert all(f"| {name} |" in made for name in (*released.NAMES, "retrained", "do nothing"))
