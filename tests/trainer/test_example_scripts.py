"""Three scripts in the shape of transformers' own examples, for a Trainer and then for an UnlearningTrainer: the class,
its arguments' class, a method and two data sets are all that changes. Models from configs, offline."""

import json
import math
import os
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import pytest
import torch
from optional_packages import datasets
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torchvision.transforms import v2
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DataCollatorWithPadding,
    EvalPrediction,
    GPT2Config,
    HfArgumentParser,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTImageProcessor,
    default_data_collator,
)

from hf_sharp_unlearn import SharpMinMax, UnlearningArguments, UnlearningTrainer, split_forget

WORDS = ["[PAD]", "[EOS]", "[UNK]", *"a quick brown fox jumps over the lazy dog and runs away from it".split()]
FORGET = [2, 5, 11]


@dataclass
class ModelArguments:
    model_name_or_path: str
    max_seq_length: int = field(default=8, metadata={"help": "in tokens"})


def sets_for(trainer_class, train):
    """All that a script has to do besides changing two class names."""
    if trainer_class is Trainer:
        return {"train_dataset": train}
    forget, retain = split_forget(train, FORGET)
    return {"forget_dataset": forget, "retain_dataset": retain, "method": SharpMinMax(fraction=0.1)}


def finish(trainer, args, eval_metrics, **card):
    """How the examples end."""
    trainer.save_model()
    trainer.log_metrics("eval", eval_metrics)
    trainer.save_metrics("eval", eval_metrics)
    trainer.save_state()
    trainer.create_model_card(**card)


def image_classification(trainer_class, arguments_class, raw, argv):
    model_args, training_args = HfArgumentParser((ModelArguments, arguments_class)).parse_args_into_dataclasses(argv)
    config = AutoConfig.from_pretrained(model_args.model_name_or_path, finetuning_task="image-classification")
    model = AutoModelForImageClassification.from_pretrained(model_args.model_name_or_path, config=config)
    image_processor = AutoImageProcessor.from_pretrained(model_args.model_name_or_path)
    size = (image_processor.size["height"], image_processor.size["width"])
    normalize = v2.Normalize(mean=image_processor.image_mean, std=image_processor.image_std)
    tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), normalize]
    _train_transforms = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), *tensor])
    _val_transforms = v2.Compose([v2.Resize(size), v2.CenterCrop(size), *tensor])

    def train_transforms(example_batch):
        example_batch["pixel_values"] = [_train_transforms(image.convert("RGB")) for image in example_batch["image"]]
        return example_batch

    def val_transforms(example_batch):
        example_batch["pixel_values"] = [_val_transforms(image.convert("RGB")) for image in example_batch["image"]]
        return example_batch

    def collate_fn(examples):
        pixel_values = torch.stack([example["pixel_values"] for example in examples])
        labels = torch.tensor([example["label"] for example in examples])
        return {"pixel_values": pixel_values, "labels": labels}

    def compute_metrics(p):
        return {"accuracy": float((np.argmax(p.predictions, axis=1) == p.label_ids).mean())}

    raw = datasets.DatasetDict(raw)
    raw["train"].set_transform(train_transforms)
    raw["validation"].set_transform(val_transforms)
    trainer = trainer_class(
        model=model,
        args=training_args,
        **sets_for(trainer_class, raw["train"]),
        eval_dataset=raw["validation"],
        compute_metrics=compute_metrics,
        processing_class=image_processor,
        data_collator=collate_fn,
    )
    trainer.train()
    metrics = trainer.evaluate()
    finish(trainer, training_args, metrics, tasks="image-classification", tags=["image-classification", "vision"])
    return trainer, metrics


def text_classification(trainer_class, arguments_class, raw, argv):
    model_args, training_args = HfArgumentParser((ModelArguments, arguments_class)).parse_args_into_dataclasses(argv)
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path)
    model = AutoModelForSequenceClassification.from_pretrained(model_args.model_name_or_path)

    def preprocess_function(examples):
        return tokenizer(examples["sentence"], max_length=model_args.max_seq_length, truncation=True)

    raw = datasets.DatasetDict(raw)
    with training_args.main_process_first(desc="dataset map pre-processing"):
        raw = raw.map(preprocess_function, batched=True)

    def compute_metrics(p: EvalPrediction):
        preds = p.predictions[0] if isinstance(p.predictions, tuple) else p.predictions
        return {"accuracy": float((np.argmax(preds, axis=1) == p.label_ids).mean())}

    trainer = trainer_class(
        model=model,
        args=training_args,
        **sets_for(trainer_class, raw["train"]),
        eval_dataset=raw["validation"],
        compute_metrics=compute_metrics,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8),
    )
    trainer.train()
    metrics = trainer.evaluate(eval_dataset=raw["validation"])
    predictions = np.argmax(trainer.predict(raw["validation"].remove_columns("label"), "predict").predictions, axis=1)
    assert len(predictions) == len(raw["validation"])
    finish(trainer, training_args, metrics, tasks="text-classification", language="en", dataset_tags="glue")
    return trainer, metrics


def causal_language_modelling(trainer_class, arguments_class, raw, argv):
    model_args, training_args = HfArgumentParser((ModelArguments, arguments_class)).parse_args_into_dataclasses(argv)
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path)
    model = AutoModelForCausalLM.from_pretrained(model_args.model_name_or_path)
    block_size = model_args.max_seq_length

    def group_texts(examples):
        concatenated = {k: list(chain(*examples[k])) for k in examples}
        total = len(concatenated[next(iter(examples))]) // block_size * block_size
        result = {k: [t[i : i + block_size] for i in range(0, total, block_size)] for k, t in concatenated.items()}
        result["labels"] = result["input_ids"].copy()
        return result

    raw = datasets.DatasetDict(raw)
    columns = raw["train"].column_names
    tokenized = raw.map(lambda examples: tokenizer(examples["sentence"]), batched=True, remove_columns=columns)
    lm_datasets = tokenized.map(group_texts, batched=True)

    def preprocess_logits_for_metrics(logits, labels):
        return (logits[0] if isinstance(logits, tuple) else logits).argmax(dim=-1)

    def compute_metrics(eval_preds):
        preds, labels = eval_preds
        return {"accuracy": float((labels[:, 1:].reshape(-1) == preds[:, :-1].reshape(-1)).mean())}

    trainer = trainer_class(
        model=model,
        args=training_args,
        **sets_for(trainer_class, lm_datasets["train"]),
        eval_dataset=lm_datasets["validation"],
        processing_class=tokenizer,
        data_collator=default_data_collator,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=preprocess_logits_for_metrics,
    )
    trainer.train()
    metrics = trainer.evaluate()
    metrics["perplexity"] = math.exp(metrics["eval_loss"])
    finish(trainer, training_args, metrics, tasks="text-generation")
    return trainer, metrics


SCRIPTS = {script.__name__: script for script in (image_classification, text_classification, causal_language_modelling)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("examples")
    draw = np.random.default_rng(0)
    torch.manual_seed(0)
    vit = ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8,
                    patch_size=4, num_labels=3)  # fmt: skip
    AutoModelForImageClassification.from_config(vit).save_pretrained(root / "image_classification")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(root / "image_classification")
    small = {"vocab_size": len(WORDS), "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertConfig(**small, intermediate_size=8, num_labels=2, pad_token_id=0)
    gpt2 = GPT2Config(vocab_size=len(WORDS), n_embd=8, n_layer=1, n_head=2, n_positions=16)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", eos_token="[EOS]")
    for name, model in (
        ("text_classification", AutoModelForSequenceClassification.from_config(bert)),
        ("causal_language_modelling", AutoModelForCausalLM.from_config(gpt2)),
    ):
        model.save_pretrained(root / name)
        fast.save_pretrained(root / name)

    def pictures(count):
        images = [Image.fromarray(draw.integers(256, size=(10, 10, 3), dtype=np.uint8)) for _ in range(count)]
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
        return datasets.Dataset.from_dict({"image": images, "label": [i % 3 for i in range(count)]}, features)

    def sentences(count):
        lines = [" ".join(draw.choice(WORDS[3:], size=9)) for _ in range(count)]
        return datasets.Dataset.from_dict({"sentence": lines, "label": [i % 2 for i in range(count)]})

    data = {name: {"train": make(24), "validation": make(8)} for name, make in
            (("image_classification", pictures), ("text_classification", sentences),
             ("causal_language_modelling", sentences))}  # fmt: skip
    return root, data


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_trainer_script_becomes_an_unlearning_script(world, name, tmp_path):
    root, data = world
    keys = {}
    for trainer_class, arguments_class in ((Trainer, TrainingArguments), (UnlearningTrainer, UnlearningArguments)):
        out = tmp_path / trainer_class.__name__
        argv = ["--model_name_or_path", str(root / name), "--output_dir", str(out), "--max_steps", "4", "--use_cpu",
                "--per_device_train_batch_size", "4", "--eval_strategy", "steps", "--eval_steps", "2",
                "--remove_unused_columns", "false" if name == "image_classification" else "true"]  # fmt: skip
        trainer, metrics = SCRIPTS[name](trainer_class, arguments_class, data[name], argv)
        keys[trainer_class] = set(metrics)
        assert trainer.state.global_step == 4 and math.isfinite(metrics["eval_loss"])
        with open(out / "eval_results.json") as file:
            assert json.load(file)["eval_accuracy"] == metrics["eval_accuracy"]
        again = type(trainer.model).from_pretrained(out)
        before = type(trainer.model).from_pretrained(root / name).state_dict()
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), trainer.model.parameters(), strict=True))
        assert any(not torch.equal(value, before[key]) for key, value in again.state_dict().items())
        assert os.path.exists(out / "README.md")
        assert (out / ("preprocessor_config.json" if name == "image_classification" else "tokenizer.json")).exists()
    assert keys[Trainer] <= keys[UnlearningTrainer], "what the script reads is there"
    assert "| forget set | 3 samples |" in (tmp_path / "UnlearningTrainer" / "README.md").read_text()
