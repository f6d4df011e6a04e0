"""One forward pass over a split: real timm and transformers models, features, tokens, what is left alone, faults."""

import random

import numpy as np
import pytest
import torch
from parts import LLAMA, BatchNormNet, Mlp, assert_same, images, rows, timm_resnet, weights_of
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    default_data_collator,
)

from hf_sharp_unlearn.metrics import Outputs, collect_outputs
from hf_sharp_unlearn.metrics.features import FeatureHook


def quiet(model, data, **kwargs):
    return collect_outputs(model, data, progress=False, **kwargs)


def vision_models():
    torch.manual_seed(0)
    sizes = {"num_labels": 3, "num_channels": 1}
    return {
        "timm": (timm_resnet(), 8),
        "resnet": (
            ResNetForImageClassification(
                ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", **sizes)
            ),
            32,
        ),
        "vit": (
            ViTForImageClassification(
                ViTConfig(
                    hidden_size=8,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    intermediate_size=8,
                    image_size=8,
                    patch_size=4,
                    **sizes,
                )
            ),
            8,
        ),
        "swin": (
            SwinForImageClassification(
                SwinConfig(
                    image_size=16, patch_size=2, embed_dim=4, depths=[1, 1], num_heads=[1, 2], window_size=4, **sizes
                )
            ),
            16,
        ),
        "convnext": (
            ConvNextForImageClassification(ConvNextConfig(hidden_sizes=[4, 4, 4, 8], depths=[1, 1, 1, 1], **sizes)),
            32,
        ),
    }


@pytest.mark.parametrize("name", ["timm", "resnet", "vit", "swin", "convnext"])
def test_features_are_what_the_last_layer_gets(name):
    """Multiplying the features with the last layer's weight gives the logits: they are the penultimate ones."""
    model, size = vision_models()[name]
    data = images(7, size=size)
    outputs = quiet(model, data, batch_size=3)
    model.eval()
    with torch.no_grad():
        logits = model(pixel_values=torch.stack([row["pixel_values"] for row in data])).logits
    assert torch.allclose(torch.tensor(outputs.logits), logits, atol=1e-5)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    rebuilt = torch.tensor(outputs.features) @ last.weight.T + last.bias
    assert torch.allclose(rebuilt.detach(), logits, atol=1e-5)
    assert outputs.labels.tolist() == [row["labels"] for row in data]
    loss = nn.functional.cross_entropy(logits, torch.tensor(outputs.labels), reduction="none")
    assert outputs.loss == pytest.approx(loss.numpy(), abs=1e-5)


def test_a_causal_lm_is_scored_by_token_and_featured_by_sample():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**LLAMA)).eval()
    draw = torch.Generator().manual_seed(0)
    data = []
    for length in (6, 4, 6):
        ids = torch.randint(3, 19, (6,), generator=draw)
        ids[length:] = 0
        labels = ids.masked_fill(torch.arange(6) >= length, -100)
        data.append({"input_ids": ids, "attention_mask": (torch.arange(6) < length).long(), "labels": labels})
    outputs = quiet(model, data, batch_size=2)
    assert outputs.items.tolist() == [5, 3, 5], "position t predicts token t + 1"
    assert outputs.logits is None and outputs.labels is None
    for i, row in enumerate(data):
        n = int(outputs.items[i])
        with torch.no_grad():
            found = model(row["input_ids"][None], attention_mask=row["attention_mask"][None], output_hidden_states=True)
        loss = nn.functional.cross_entropy(found.logits[0, :n], row["input_ids"][1 : n + 1])
        assert outputs.loss[i] == pytest.approx(loss.item(), abs=1e-5)
        right = (found.logits[0, :n].argmax(-1) == row["input_ids"][1 : n + 1]).float().mean()
        assert outputs.correct[i] == pytest.approx(right.item())
        assert outputs.features[i] == pytest.approx(found.hidden_states[-1][0, :n].mean(0).numpy(), abs=1e-5)
    assert outputs.targets.tolist() == [
        int(t) for row, n in zip(data, (6, 4, 6), strict=True) for t in row["input_ids"][1:n]
    ]
    part = outputs.take(np.array([2, 1]))
    assert part.targets.tolist() == data[2]["input_ids"][1:].tolist() + data[1]["input_ids"][1:4].tolist()


def test_sequence_classification_takes_the_token_that_was_judged():
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(**LLAMA, num_labels=3)).eval()
    ids = torch.tensor([[5, 6, 7, 0, 0], [5, 6, 7, 8, 9]])
    data = [{"input_ids": row, "attention_mask": (row > 0).long(), "labels": 1} for row in ids]
    outputs = quiet(model, data)
    rebuilt = torch.tensor(outputs.features) @ model.score.weight.T
    assert torch.allclose(rebuilt.detach(), torch.tensor(outputs.logits), atol=1e-5)


def test_a_named_layer_gives_its_output_pooled_over_positions():
    model = timm_resnet()
    outputs = quiet(model, images(4), feature_layer="timm_model.layer1")
    seen = {}
    handle = model.timm_model.layer1.register_forward_hook(lambda module, inputs, output: seen.update(output=output))
    with torch.no_grad():
        model.eval()(pixel_values=torch.stack([row["pixel_values"] for row in images(4)]))
    handle.remove()
    assert outputs.features == pytest.approx(seen["output"].mean((2, 3)).numpy(), abs=1e-6)
    assert quiet(model, images(4), features=False).features.shape == (4, 0)


def test_model_mode_buffers_and_generators_are_left_alone():
    model = BatchNormNet()
    model.train()
    model.bn.eval()
    before, states = weights_of(model), (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    quiet(model, rows(9, (1, 5, 5)))
    assert_same(before, weights_of(model))
    assert model.training and not model.bn.training
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert not any(module._forward_hooks for module in model.modules())


def test_the_result_does_not_depend_on_the_batches_and_augmentation_is_the_same_for_every_model():
    model, data = Mlp(dropout=0.5), rows(11)
    whole, small = (
        quiet(model, data, batch_size=11),
        quiet(model, DataLoader(data, 4, collate_fn=default_data_collator)),
    )
    assert whole.loss == pytest.approx(small.loss, abs=1e-6)

    class Augmented(torch.utils.data.Dataset):
        def __len__(self):
            return len(data)

        def __getitem__(self, index):
            return {**data[index], "x": data[index]["x"] + torch.randn(6)}

    torch.manual_seed(1)
    one = quiet(model, Augmented())
    torch.manual_seed(2)
    assert (one.loss == quiet(model, Augmented()).loss).all() and (one.loss != whole.loss).all()


def test_labels_of_minus_100_leave_their_sample_out():
    data = rows(5)
    data[2]["labels"] = -100
    outputs = quiet(Mlp(), data)
    assert len(outputs) == 4 == len(outputs.features) == len(outputs.logits)
    assert outputs.labels.tolist() == [row["labels"] for row in data if row["labels"] != -100]


def test_columns_that_forward_does_not_know_are_left_out_as_in_trainer():
    plain, more = images(5), [{**row, "idx": i, "name": "x"} for i, row in enumerate(images(5))]
    assert (quiet(timm_resnet(), more).loss == quiet(timm_resnet(), plain).loss).all()


def test_half_precision_models_and_arrays_are_scored_in_single_precision():
    model = Mlp(dtype=torch.bfloat16)
    outputs = quiet(model, rows(6))
    with torch.no_grad():
        z = model.eval()(torch.stack([row["x"] for row in rows(6)]))["logits"]
    expected = Outputs.from_logits(z, [row["labels"] for row in rows(6)])
    assert z.dtype == torch.bfloat16 and outputs.loss == pytest.approx(expected.loss)
    assert outputs.logits.dtype == np.float32 and outputs.features.dtype == np.float32


def test_faults():
    with pytest.raises(ValueError, match="The forget set is empty"):
        quiet(Mlp(), [], name="forget")
    with pytest.raises(ValueError, match="no sample with a label that counts"):
        quiet(Mlp(), [{**row, "labels": -100} for row in rows(3)])
    with pytest.raises(ValueError, match="no labels under .'y',. in a batch of .'labels', 'x'."):
        quiet(Mlp(), rows(3), label_names=("y",))

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(rows(3))

    for wrong in (3, Stream(), iter([])):
        with pytest.raises(ValueError, match="pass a map-style data set, or a DataLoader that makes batches"):
            quiet(Mlp(), wrong)
    with pytest.raises(ValueError, match="feature_layer='nothing' is no module"):
        quiet(Mlp(), rows(3), feature_layer="nothing")
    broken = Mlp()
    nn.init.constant_(broken.second.bias, torch.nan)
    with pytest.raises(ValueError, match="The retain set: The logits of 3 of 3 samples are nan"):
        quiet(broken, rows(3), name="retain")

    class NoLinear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 3))

        def forward(self, x, labels=None):
            return {"logits": x @ self.weight}

    with pytest.raises(ValueError, match="no linear layer with 3 outputs was called: name the module"):
        quiet(NoLinear(), rows(3))
    assert len(quiet(NoLinear(), rows(3), features=False)) == 3
    model = Mlp()
    with FeatureHook(model, "dropout") as hook, pytest.raises(ValueError, match="was not called"):
        hook.take(torch.zeros(2, 3), torch.ones(2, dtype=torch.bool))
