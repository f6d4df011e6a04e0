"""Labels and padding of ready data sets: what a run would meet in the middle is refused at its start."""

import pytest
import torch
from parts import images, rows, timm_resnet
from transformers import GPT2Config, GPT2ForSequenceClassification

from hf_sharp_unlearn import NegGradPlus


def test_rows_without_a_label_are_named(make_trainer):
    data = rows(12)
    data[3]["labels"] = data[9]["labels"] = None
    with pytest.raises(ValueError, match="retain_dataset: 1 rows have no label .labels., e.g. .7.. Leave them out"):
        make_trainer(NegGradPlus(), model=timm_resnet(), trainer=_sets(data, 0, 3))


def _sets(data, *forget):
    data = [{"pixel_values": images(1)[0]["pixel_values"], "labels": row["labels"]} for row in data]
    kept = [row for i, row in enumerate(data) if i not in forget]
    return {"forget_dataset": [row for row in data if row["labels"] is not None][:2], "retain_dataset": kept}


def test_fractions_are_no_classes(make_trainer):
    data = [{**row, "labels": float(row["labels"])} for row in images(12)]
    with pytest.raises(ValueError, match="column 'labels' holds fractions.* tells 3 classes apart"):
        make_trainer(NegGradPlus(), model=timm_resnet(), data=data)


def test_a_decoder_that_classifies_needs_a_padding_id_for_batches(make_trainer):
    config = GPT2Config(vocab_size=8, n_embd=16, n_layer=1, n_head=2, n_positions=16, num_labels=3)
    data = [{"input_ids": torch.tensor([2, 3, i % 8, i // 8]), "labels": i % 3} for i in range(12)]
    with pytest.raises(ValueError, match="model.config.pad_token_id=None: GPT2ForSequenceClassification finds"):
        make_trainer(NegGradPlus(), model=GPT2ForSequenceClassification(config), data=data)
    config.pad_token_id = 0
    make_trainer(NegGradPlus(), model=GPT2ForSequenceClassification(config), data=data, max_steps=1).train()
