"""A pytest plugin: the few small models and texts that transformers' Trainer tests ask the Hub for, without a network.

`python hub.py FOLDER` writes tiny random models and their tokenizers, under the same names, as a cache of the Hub's:
HF_HOME=FOLDER. What the tests claim of them does not depend on their weights.
"""

import random
import sys
from pathlib import Path
from typing import Any

import datasets
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

_TEXTS = ("Salesforce/wikitext",)
_load_dataset = datasets.load_dataset


def texts(count: int = 200) -> list[str]:
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(300)]
    return [" ".join(draw.choices(words, k=draw.randint(4, 30))) for _ in range(count)]


def load_dataset(path: str, *args: Any, **options: Any) -> Any:
    if path in _TEXTS:
        return datasets.Dataset.from_dict({"text": texts()})
    return _load_dataset(path, *args, **options)


def pytest_configure() -> None:
    datasets.load_dataset = load_dataset


def make(home: Path) -> None:
    """Write the cache."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    decoder = {**sizes, "num_key_value_heads": 2, "max_position_embeddings": 512}

    folder = _place(home, "trl-internal-testing/tiny-Qwen2ForCausalLM-2.5")
    tokenizer = _byte_pairs(folder, eos_token="<|endoftext|>")
    hf.Qwen2ForCausalLM(hf.Qwen2Config(vocab_size=len(tokenizer), **decoder)).save_pretrained(folder)

    folder = _place(home, "hf-internal-testing/tiny-random-LlamaForCausalLM")
    tokenizer = _byte_pairs(folder, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>")
    hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=len(tokenizer), **decoder)).save_pretrained(folder)

    for name in ("bert-base-cased", "bert-base-uncased", "google-bert/bert-base-uncased"):
        folder = _place(home, name)
        letters = [chr(code) for code in range(33, 127)]
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
        (folder / "vocab.txt").write_text("\n".join(words))
        hf.BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
        config = hf.BertConfig(vocab_size=len(words), **sizes)
        hf.BertForSequenceClassification(config).save_pretrained(folder)

    hf.Wav2Vec2FeatureExtractor().save_pretrained(_place(home, "facebook/wav2vec2-base-960h"))

    folder = _place(home, "openai/clip-vit-base-patch32")
    vocabulary = _trained(["<|startoftext|>", "<|endoftext|>"]).get_vocab()
    tokenizer = hf.CLIPTokenizer(vocab=vocabulary, merges=[])
    hf.CLIPProcessor(image_processor=hf.CLIPImageProcessor(), tokenizer=tokenizer).save_pretrained(folder)
    hf.CLIPConfig().save_pretrained(folder)


def _place(home: Path, name: str) -> Path:
    """The folder of a repository's only revision in a cache of huggingface_hub."""
    root, revision = home / "hub" / ("models--" + name.replace("/", "--")), "0" * 40
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(revision)
    folder = root / "snapshots" / revision
    folder.mkdir(parents=True)
    return folder


def _trained(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def _byte_pairs(folder: Path, **special: str) -> hf.PreTrainedTokenizerFast:
    trained = _trained(list(dict.fromkeys(special.values())))
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=trained, **special)
    tokenizer.save_pretrained(folder)
    return tokenizer


if __name__ == "__main__":
    make(Path(sys.argv[1]))
