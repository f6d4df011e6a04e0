"""Small text models in folders, and twins of them: the same function with other numbers for classes and words."""

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

WORDS = "[PAD] [UNK] good bad film book cat dog".split()


def tokenizer_of(words=WORDS, **tokens):
    """A tokenizer that takes words for tokens, numbered in their order."""
    numbers = {word: i for i, word in enumerate(words)}
    made = Tokenizer(models.WordLevel(numbers, unk_token=tokens.get("unk_token", "[UNK]")))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = {"pad_token": "[PAD]", "unk_token": "[UNK]", **tokens}
    return PreTrainedTokenizerFast(tokenizer_object=made, **tokens)


def classifier(folder, names=None, labels=3, seed=0, **settings):
    """A BERT classifier whose answers differ from text to text. names: of the classes, None: LABEL_0, ..."""
    torch.manual_seed(seed)
    if names is not None:
        settings |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    else:
        settings |= {"num_labels": labels}
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, initializer_range=0.5, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        **settings,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    model.save_pretrained(folder)
    tokenizer_of().save_pretrained(folder)
    return model


def twin(model, folder, names, order, words=WORDS):
    """The same function in a folder: class i of it is class order[i] of `model`, called names[order[i]]; its tokenizer
    numbers the words otherwise."""
    config = BertConfig.from_dict(model.config.to_dict())
    config.id2label = {i: names[c] for i, c in enumerate(order)}
    config.label2id = {names[c]: i for i, c in enumerate(order)}
    other = BertForSequenceClassification(config)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name in ("classifier.weight", "classifier.bias"):
        state[name] = state[name][list(order)]
    places = [WORDS.index(word) for word in words]
    state["bert.embeddings.word_embeddings.weight"] = state["bert.embeddings.word_embeddings.weight"][places]
    other.load_state_dict(state)
    other.save_pretrained(folder)
    tokenizer_of(words).save_pretrained(folder)
    return other


def texts(count, seed=0):
    """Texts of different length."""
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS[2:], size=draw.integers(2, 7))) for _ in range(count)]


def write_csv(path, rows, labels):
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in zip(rows, labels, strict=True)))
    return path
