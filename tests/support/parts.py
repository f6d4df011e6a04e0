"""Small real models from configs, small data, and where things lie."""

from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainerCallback

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"


class Mlp(nn.Module):
    """A plain nn.Module without batch statistics; optional dropout."""

    def __init__(self, dropout: float = 0.0, dtype=torch.float32, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Linear(6, 8, dtype=dtype)
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(8, 3, dtype=dtype)
        for weight in self.parameters():
            weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.5)

    def forward(self, x, labels=None):
        logits = self.second(self.dropout(torch.tanh(self.first(x.to(self.first.weight.dtype)))))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits} if loss is not None else {"logits": logits}


class BatchNormNet(nn.Module):
    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(1, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x, labels=None):
        logits = self.head(torch.relu(self.bn(self.conv(x))).mean((2, 3)))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def rows(count: int, shape=(6,), classes: int = 3, seed: int = 0) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((count, *shape), generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    return [{"x": x[i], "labels": int(labels[i])} for i in range(count)]


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), f"{name} differs by {(a[name] - b[name]).abs().max()}"


def assert_same_updates(found, expected, start=None, share: float = 1e-4) -> None:
    """Two ways to compute the same run: no element is off by more than `share` of its tensor's largest update.

    What rounding does to a weight goes with what was added to it, so the size of the update is the measure, not that of
    the weight; on top come some units in the last place of the largest weight, since every step rounds once when it is
    added. Without `start` the tensors are updates themselves (gradients, moments). Tensors by name or by position.
    """
    if not isinstance(expected, dict):
        found, expected = (dict(enumerate(values)) for values in (found, expected))
    assert found.keys() == expected.keys()
    moved = False
    for name in expected:
        a, b = (values[name].detach() for values in (found, expected))
        assert a.shape == b.shape and a.dtype == b.dtype, name
        if not b.is_floating_point():
            assert torch.equal(a, b), name
        elif b.numel():
            origin = torch.zeros_like(b) if start is None else start[name].detach()
            update, size, off = (x.double().abs().max().item() for x in (b.double() - origin, b, a.double() - b))
            rounding = 0 if start is None else 4 * torch.finfo(b.dtype).eps * size
            assert off <= share * update + rounding, f"{name} is off by {off / (update or 1):.1e} of its update"
            moved |= update > 10 * rounding
    assert moved, "nothing has moved: nothing was compared"


def differs(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(a[name], b[name]) for name in a)


def timm_resnet(classes: int = 3, size: int = 8, seed: int = 0, architecture: str = "resnet18", **model_args):
    """A real timm ResNet behind transformers' wrapper, small enough for one step in milliseconds."""
    from transformers import AutoModelForImageClassification, TimmWrapperConfig

    torch.manual_seed(seed)
    config = TimmWrapperConfig(
        architecture=architecture,
        num_labels=classes,
        model_args={"in_chans": 1, "channels": [4, 4, 8, 8], "stem_width": 4, **model_args},
        pretrained_cfg={"input_size": [1, size, size], "mean": [0.5], "std": [0.5], "crop_pct": 1.0},
    )
    return AutoModelForImageClassification.from_config(config)


def images(count: int, classes: int = 3, size: int = 8, seed: int = 0) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn((count, 1, size, size), generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    return [{"pixel_values": pixels[i], "labels": int(labels[i])} for i in range(count)]


LLAMA = {
    "vocab_size": 19,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class Augmented(Dataset):
    """Random augmentation from every generator that people use."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        import random

        import numpy as np

        row = self.data[index]
        noise = torch.randn(6) * 0.1 + random.random() * 0.1 + float(np.random.rand()) * 0.1
        return {"x": row["x"] + noise, "labels": row["labels"]}


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


class Before(TrainerCallback):
    """Weights and buffers when the current step began."""

    def on_step_begin(self, args, state, control, model, **kwargs):
        self.state = weights_of(model)
