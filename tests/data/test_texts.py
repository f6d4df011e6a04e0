"""Texts as tokens and batches: end tokens, padding on either side, lengths, token ids without an embedding."""

import logging

import numpy as np
import pytest
import torch
from optional_packages import datasets
from text_models import WORDS, classifier, texts, tokenizer_of
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from hf_sharp_unlearn.data.sources import FromConfig, collator_for, load_model, prepare
from hf_sharp_unlearn.data.texts import TextCollator
from hf_sharp_unlearn.metrics import collect_outputs

GPT2 = {"vocab_size": len(WORDS), "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "bos_token_id": 1,
        "eos_token_id": 1, "initializer_range": 0.5}  # fmt: skip


def table(rows, **columns):
    return datasets.Dataset.from_dict({"text": rows, **columns})


def end_tokens(folder, side="right", pad=None):
    """A tokenizer as many language models have: the end token is the padding token, or there is none."""
    tokenizer_of(["<unk>", "<eos>", *WORDS[2:]], unk_token="<unk>", eos_token="<eos>", pad_token=pad,
                 padding_side=side).save_pretrained(folder)  # fmt: skip


def losses(model, data, collate, batch_size):
    return collect_outputs(model, data, batch_size=batch_size, collator=collate, features=False, progress=False).loss


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", [None, "<eos>"])
def test_end_tokens_count_and_padding_changes_nothing(tmp_path, side, pad):
    GPT2LMHeadModel(GPT2Config(**GPT2)).save_pretrained(tmp_path)
    end_tokens(tmp_path, side, pad)
    data = prepare(table([f"{text} <eos>" for text in texts(9)]), "t", str(tmp_path))
    collate, model = collator_for(data, str(tmp_path)), load_model(str(tmp_path))
    batch = collate([data[i] for i in range(9)])
    assert int(((batch["labels"] == 1) & (batch["attention_mask"] == 1)).sum()) == 9
    alone = losses(model, data, collate, 1)
    for size in (2, 4, 9):
        assert losses(model, data, collate, size) == pytest.approx(alone, abs=1e-5)
    order = np.random.default_rng(0).permutation(9)
    assert losses(model, data.select(order), collate, 3) == pytest.approx(alone[order], abs=1e-5)


def test_padding_that_rows_bring_along_and_batches_padded_on_the_left(tmp_path):
    """A collator of the user's that pads on the left, as for generation; positions learned from 0, and from 2 (OPT)."""
    opt = OPTConfig(vocab_size=len(WORDS), hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2,
                    max_position_embeddings=32, word_embed_proj_dim=16, init_std=0.5, dropout=0.0)  # fmt: skip
    ids = [[2, 3, 4], [5, 6, 7, 2, 3, 4, 5], [6, 2]]

    def left(rows):
        longest = max(len(row["input_ids"]) for row in rows)
        padded = {"input_ids": [], "attention_mask": [], "labels": []}
        for row in rows:
            gap, own = longest - len(row["input_ids"]), row["input_ids"]
            for name, fill, values in (
                ("input_ids", 0, own),
                ("attention_mask", 0, [1] * len(own)),
                ("labels", -100, own),
            ):
                padded[name].append([fill] * gap + values)
        return {name: torch.tensor(values) for name, values in padded.items()}

    data = [{"input_ids": row} for row in ids]
    collate = TextCollator(pad=0, learns_text=True)
    for model in (GPT2LMHeadModel(GPT2Config(**GPT2)).eval(), OPTForCausalLM(opt).eval()):
        alone = losses(model, data, collate, 1)
        assert losses(model, data, left, 3) == pytest.approx(alone, abs=1e-5), type(model).__name__
        brought = [{name: value[i].tolist() for name, value in left(data).items()} for i in range(3)]
        assert losses(model, brought, TextCollator(pad=0), 2) == pytest.approx(alone, abs=1e-5)


def test_a_decoder_that_classifies_gets_a_padding_id_or_is_refused_by_name(tmp_path):
    config = GPT2Config(**GPT2, num_labels=2)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    end_tokens(tmp_path)
    data = prepare(table(texts(6), label=[0, 1] * 3), "t", str(tmp_path))
    collate, model = collator_for(data, str(tmp_path)), load_model(str(tmp_path))
    assert model.config.pad_token_id == 1 == FromConfig(str(tmp_path))().config.pad_token_id
    assert losses(model, data, collate, 6) == pytest.approx(losses(model, data, collate, 1), abs=1e-5)
    tokenizer_of(["[UNK]", *WORDS[1:]], pad_token=None).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="its tokenizer has no padding and no end token.*Give it one"):
        collator_for(data, str(tmp_path))


def test_long_texts_are_cut_to_the_model_s_positions_and_counted(tmp_path, caplog):
    """RoBERTa's first positions are those of its padding: 20 rows of the table hold 19 tokens."""
    classifier(tmp_path / "bert")
    roberta = RobertaConfig(vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                            intermediate_size=16, max_position_embeddings=20, pad_token_id=0, num_labels=3)  # fmt: skip
    RobertaForSequenceClassification(roberta).save_pretrained(tmp_path / "roberta")
    tokenizer_of().save_pretrained(tmp_path / "roberta")
    long = table(["good film " * 30, "cat", "bad dog " * 25], label=[0, 1, 2])
    for name, limit in (("bert", 32), ("roberta", 19)):
        source = str(tmp_path / name)
        with caplog.at_level(logging.WARNING):
            data = prepare(long, "long.csv", source)
        assert [len(ids) for ids in data["input_ids"]] == [limit, 1, limit]
        assert caplog.text.count(f"'long.csv': 2 of 3 texts are longer than {limit} tokens and were cut") == 1
        load_model(source)(**collator_for(data, source)([data[0], data[1]]))
        with pytest.raises(ValueError, match=f"max_length={limit + 1}: the model has {limit} positions"):
            prepare(long, "long.csv", source, max_length=limit + 1)
        assert max(map(len, prepare(long, "long.csv", source, max_length=4)["input_ids"])) == 4
    tokens = datasets.Dataset.from_dict({"input_ids": [[2, 3], [2] * 33], "labels": [0, 1]})
    with pytest.raises(ValueError, match="row 1 has 33 tokens .input_ids., .*bert' has 32 positions"):
        prepare(tokens, "tokens", str(tmp_path / "bert"))


def test_token_ids_without_an_embedding_are_named(tmp_path):
    classifier(tmp_path)
    tokenizer_of([*WORDS, "axolotl"]).save_pretrained(tmp_path)
    assert prepare(table(["good cat"], label=[0]), "t", str(tmp_path))
    with pytest.raises(ValueError, match="row 1 has the token id 8, the embedding of .* has 8 rows"):
        prepare(table(["good cat", "bad axolotl"], label=[0, 1]), "t", str(tmp_path))
    with pytest.raises(ValueError, match="2 rows have no text .text., e.g. .1, 3."):
        prepare(table(["good", None, "cat", None], label=[0, 1, 2, 0]), "t", str(tmp_path))
