"""`sharp-unlearn evaluate`, `memorize` and `landscape` on real models and files, as a user calls them."""

import json

import numpy as np
import peft
import pytest
import torch
from optional_packages import datasets
from parts import timm_resnet
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    ResNetConfig,
    ResNetForImageClassification,
    ViTImageProcessor,
)

from hf_sharp_unlearn.commands import cli
from hf_sharp_unlearn.data.sources import FromConfig, collator_for, load_data, load_model

WORDS = ["[PAD]", "[EOS]", "[UNK]", *"a quick brown fox jumps over the lazy dog".split()]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Three timm models, and parquet files of arrays and of encoded images."""
    root = tmp_path_factory.mktemp("commands")
    for seed, name in enumerate(("unlearned", "retrained", "original")):
        timm_resnet(seed=seed).save_pretrained(root / name)
    draw = np.random.default_rng(0)
    features = datasets.Features(
        {"pixel_values": datasets.Array3D((1, 8, 8), "float32"), "label": datasets.Value("int64")}
    )
    for split, count in (("forget", 12), ("retain", 30), ("test", 20)):
        pixels = draw.normal(size=(count, 1, 8, 8)).astype("float32")
        columns = {"pixel_values": list(pixels), "label": draw.integers(3, size=count)}
        datasets.Dataset.from_dict(columns, features).to_parquet(root / f"{split}.parquet")
    torch.manual_seed(0)
    ResNetForImageClassification(
        ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3)
    ).save_pretrained(root / "resnet")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(root / "resnet")
    pictures = [Image.fromarray(draw.integers(256, size=(20, 20, 3), dtype=np.uint8)) for _ in range(8)]
    images = datasets.Dataset.from_dict(
        {"img": pictures, "fine_label": [0, 1, 2, 0, 1, 2, 0, 1]},
        datasets.Features({"img": datasets.Image(), "fine_label": datasets.Value("int64")}),
    )
    images.to_parquet(root / "images.parquet")
    images.save_to_disk(root / "saved")
    return root


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    root = tmp_path_factory.mktemp("language")
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[EOS]")
    settings = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1,
                "eos_token_id": 1}  # fmt: skip
    for name, cls in (("causal", LlamaForCausalLM), ("classifier", LlamaForSequenceClassification)):
        torch.manual_seed(0)
        cls(LlamaConfig(**settings)).save_pretrained(root / name)
        fast.save_pretrained(root / name)
    draw = np.random.default_rng(0)
    rows = [" ".join(draw.choice(WORDS[3:], size=draw.integers(3, 7))) for _ in range(12)]
    (root / "plain.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    (root / "labelled.csv").write_text("text,label\n" + "".join(f"{row},{i % 2}\n" for i, row in enumerate(rows)))
    return root


def data_of(world):
    return [word for split in ("forget", "retain", "test") for word in (f"--{split}", world / f"{split}.parquet")]


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def test_evaluate_writes_the_folder_and_does_not_repeat_itself(world, tmp_path, capsys):
    command = ["evaluate", "--model", world / "unlearned", "--reference", world / "retrained", "--original",
               world / "original", *data_of(world),
               "--output-dir", tmp_path / "out", "--relearn-steps", 3, "--relearn-samples", 2, "--shadow-models",
               world / "original", world / "retrained", "--device", "cpu"]  # fmt: skip
    assert run(*command) == 0
    out = capsys.readouterr().out
    assert "| tug_of_war | higher |" in out and "written: " in out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["samples"] == {"forget": 12, "retain": 30, "test": 20}
    assert report["metrics"]["mia_lira/auc"]["unlearned"]["n"] == 12
    assert report["relearning"]["original"]["forget"]["steps"] == [0, 1, 2, 3]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "report.json", "report.md", "accuracy.png", "roc.png", "confidence.png", "features.png", "relearning.png"
    }  # fmt: skip
    assert run(*command) == 1
    assert "report.json is there already: pass --overwrite" in capsys.readouterr().err
    assert run(*command, "--overwrite") == 0


def test_errors_are_one_line(world, tmp_path, capsys):
    data = ["--forget", world / "forget.parquet", "--output-dir", tmp_path / "out"]
    for arguments, words in (
        (["--model", world / "nowhere", *data], "No model could be loaded from"),
        (["--model", world / "unlearned", *data[2:], "--forget", world / "nothing.parquet"], "No data set could be"),
        (["--model", world / "unlearned", *data, "--label", "colour"], "label='colour' is no column"),
        (["--model", world / "unlearned", *data, "--feature-layer", "x"], "feature_layer='x' is no module"),
    ):
        assert run("evaluate", *arguments) == 1
        err = capsys.readouterr().err
        line = [line for line in err.splitlines() if line.startswith("sharp-unlearn:")]
        assert len(line) == 1 and words in line[0] and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_landscape_compares_checkpoints(world, tmp_path, capsys):
    command = ["landscape", "--models", world / "original", world / "unlearned", "--forget", world / "forget.parquet",
               "--test", world / "test.parquet", "--points", 3, "--output-dir", tmp_path / "out",
               "--samples", 10]  # fmt: skip
    assert run(*command) == 0
    assert "original, forget set: centre" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "out" / "landscape.json").read_text())
    assert list(numbers) == ["original", "unlearned"] and numbers["unlearned"]["test"]["samples"] == 10
    assert (tmp_path / "out" / "surfaces.png").exists() and (tmp_path / "out" / "slices.png").exists()
    assert run(*command) == 1 and run(*command, "--overwrite", "--names", "a") == 1
    assert "a name of its own" in capsys.readouterr().err


def test_memorize_estimates_resumes_and_chooses_forget_sets(world, tmp_path, capsys):
    training = ["--models", 5, "--epochs", 1, "--batch-size", 8, "--device", "cpu"]
    command = ["memorize", "--model", world / "original", "--train", world / "retain.parquet", *training,
               "--forget-size", 4, "--middle", "median", "--output-dir", tmp_path / "out"]  # fmt: skip
    assert run(*command) == 0
    out = capsys.readouterr().out
    assert "rank correlation with confidence" in out and "30 samples, 5 models, standard error" in out
    with np.load(tmp_path / "out" / "memorization.npz") as found:
        scores = found["scores"]
        assert scores.shape == found["standard_errors"].shape == (30,)
    for name in ("high", "mid", "low"):
        assert len(np.load(tmp_path / "out" / f"forget_{name}.npy")) == 4
    with np.load(tmp_path / "out" / "proxies.npz") as proxies:
        assert proxies["forgetting_events"].shape == (30,)
    assert (tmp_path / "out" / "memorization.png").exists()
    assert run(*command) == 1, "finished"
    (tmp_path / "out" / "memorization.npz").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "models").iterdir()}
    assert run(*command, "--no-proxies") == 0
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "models").iterdir()}
    with np.load(tmp_path / "out" / "memorization.npz") as found:
        assert np.array_equal(found["scores"], scores, equal_nan=True)
    capsys.readouterr()
    assert run(*command, "--overwrite", "--epochs", 2) == 1
    assert "use another one" in capsys.readouterr().err, "models of other settings are not mixed in"
    assert run(*command, "--overwrite", "--forget-size", 31) == 1
    assert "must lie between 1 and 30" in capsys.readouterr().err


def test_memorize_takes_scores_from_a_file(tmp_path, capsys):
    np.save(tmp_path / "scores.npy", np.linspace(0, 1, 11))
    assert run("memorize", "--scores", tmp_path / "scores.npy", "--forget-size", 2, "--output-dir", tmp_path / "o") == 0
    assert np.load(tmp_path / "o" / "forget_high.npy").tolist() == [9, 10]
    assert 5 in np.load(tmp_path / "o" / "forget_mid.npy")
    again = ["memorize", "--scores", tmp_path / "scores.npy", "--forget-size", 2, "--output-dir", tmp_path / "o"]
    assert run(*again) == 1 and run(*again, "--overwrite") == 0, "what is there is not replaced unasked"
    assert run(*again, "--overwrite", "--forget-size", 20) == 1 and run(*again, "--overwrite", "--middle", "x") == 1
    assert run("memorize", "--scores", tmp_path / "scores.npy") == 2
    assert run("memorize", "--forget-size", 2) == 2
    assert "Give either --scores FILE, or --train DATA with --model MODEL" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "memorize", "landscape"])
def test_help_shows_defaults_by_topic(command, capsys):
    with pytest.raises(SystemExit) as raised:
        run(command, "--help")
    assert raised.value.code == 0
    out = capsys.readouterr().out
    assert "--output-dir" in out and "default: " in out and "\ndata:" in out and "\nrun:" in out


@pytest.mark.parametrize("source", ["images.parquet", "saved"])
def test_images_are_processed_as_the_model_wants_them(world, source):
    data = load_data(str(world / source), str(world / "resnet"))
    assert data[0]["pixel_values"].shape == (3, 16, 16) and data[4]["labels"] == 1
    batch = collator_for(data, str(world / "resnet"))([data[0], data[1]])
    model = load_model(str(world / "resnet"))
    assert type(model).__name__ == "ResNetForImageClassification" and not model.training
    assert model(**batch).logits.shape == (2, 3)
    import pickle

    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again[0]["pixel_values"], data[0]["pixel_values"]), "other processes can have it"


def test_a_fresh_model_from_a_config_depends_on_the_seed_only(world):
    build = FromConfig(str(world / "original"))
    torch.manual_seed(3)
    one = build()
    torch.manual_seed(3)
    two = build()
    weights = load_model(str(world / "original")).state_dict()
    name = "timm_model.fc.weight"
    assert torch.equal(one.state_dict()[name], two.state_dict()[name])
    assert not torch.equal(one.state_dict()[name], weights[name])


def test_language_models_read_text(language, tmp_path):
    for kind, source in (("causal", "plain.jsonl"), ("classifier", "labelled.csv")):
        spec, name = str(language / source), str(language / kind)
        data = load_data(spec, name, max_length=5)
        assert max(len(row["input_ids"]) for row in data) == 5
        batch = collator_for(data, name)([data[0], data[1]])
        assert batch["labels"].shape == ((2,) if kind == "classifier" else batch["input_ids"].shape)
        arguments = ["evaluate", "--model", name, "--reference", name, "--forget", spec, "--test", spec, "--output-dir",
                     tmp_path / kind, "--svc-samples", 0, "--batch-size", 5, "--device", "cpu"]  # fmt: skip
        assert run(*arguments) == 0
        report = json.loads((tmp_path / kind / "report.json").read_text())
        assert report["samples"] == {"forget": 12, "test": 12}
        assert report["metrics"]["agreement/forget"]["unlearned"]["value"] == 1


def test_classes_are_numbered_as_the_model_numbers_them(world, tmp_path):
    """An image folder with two of three classes: the loader would call them 0 and 1."""
    model = tmp_path / "named"
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic",
                          id2label={0: "cat", 1: "dog", 2: "eel"}, label2id={"cat": 0, "dog": 1, "eel": 2})  # fmt: skip
    ResNetForImageClassification(config).save_pretrained(model)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(model)
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    for name, count in (("dog", 2), ("eel", 3)):
        for folder in (tmp_path / "two" / name, tmp_path / f"only_{name}" / name):
            folder.mkdir(parents=True)
            for i in range(count):
                picture.save(folder / f"{i}.png")
    two = load_data(str(tmp_path / "two"), str(model))
    assert sorted(two[i]["labels"] for i in range(5)) == [1, 1, 2, 2, 2]
    eel = load_data(str(tmp_path / "only_eel"), str(model))
    assert [eel[i]["labels"] for i in range(3)] == [2, 2, 2], "a class alone is still that class"
    with pytest.raises(ValueError, match="'dog', 'eel'. cannot be told. Give the model's config the names"):
        load_data(str(tmp_path / "two"), str(world / "resnet"))
    strings = {"pixel_values": [[1.0], [2.0]], "label": ["eel", "cat"]}
    datasets.Dataset.from_dict(strings).to_parquet(tmp_path / "strings.parquet")
    data = load_data(str(tmp_path / "strings.parquet"), str(model))
    assert [int(data[i]["labels"]) for i in range(2)] == [2, 0]


def test_adapters_tokens_and_labels_beside_the_text(language, tmp_path):
    causal = str(language / "causal")
    base = LlamaForCausalLM.from_pretrained(causal)
    peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])).save_pretrained(
        tmp_path / "lora"
    )
    model = load_model(str(tmp_path / "lora"))
    assert [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert "labels" not in load_data(str(language / "labelled.csv"), causal).column_names, "a causal LM learns the text"
    spec = str(language / "plain.jsonl")
    command = ["evaluate", "--model", tmp_path / "lora", "--forget", spec, "--output-dir", tmp_path / "out",
               "--relearn-steps", 2, "--relearn-samples", 2, "--device", "cpu"]  # fmt: skip
    assert run(*command) == 0
    tokens = {"input_ids": [[3, 4, 5], [6, 7]], "labels": [[-100, 4, 5], [6, 7]]}
    datasets.Dataset.from_dict(tokens).to_parquet(tmp_path / "tokens.parquet")
    data = load_data(str(tmp_path / "tokens.parquet"), causal)
    batch = collator_for(data, causal)([data[0], data[1]])
    assert batch["labels"].tolist() in ([[-100, 4, 5], [6, 7, -100]], [[-100, 4, 5], [-100, 6, 7]])
    datasets.Dataset.from_dict({"input_ids": tokens["input_ids"]}).to_parquet(tmp_path / "plain.parquet")
    data = load_data(str(tmp_path / "plain.parquet"), causal)
    assert collator_for(data, causal)([data[0], data[1]])["labels"].shape == (2, 3)


def test_splits_and_columns_are_named_in_errors(world, tmp_path):
    both = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"x": [1.0, 2.0], "label": [0, 1]}),
                                 "other": datasets.Dataset.from_dict({"x": [3.0], "label": [1]})})  # fmt: skip
    both.save_to_disk(tmp_path / "both")
    with pytest.raises(ValueError, match="name one of the splits .'train', 'other'., as"):
        load_data(str(tmp_path / "both"), "")
    other = load_data(f"{tmp_path / 'both'}:other", "")
    assert other[0]["labels"].item() == 1 and other[0]["x"].item() == 3
    with pytest.raises(ValueError, match="name one of the splits .'train', 'other'."):
        load_data(f"{tmp_path / 'both'}:none", "")
    datasets.Dataset.from_dict({"x": [3.0], "label": [1]}).save_to_disk(tmp_path / "one")
    with pytest.raises(ValueError, match="has no splits. Leave :train out"):
        load_data(f"{tmp_path / 'one'}:train", "")
    nothing = datasets.Dataset.from_dict({"x": [1.0]})
    nothing.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="has the columns .'x'.: no image, no 'text', and no label"):
        load_data(str(tmp_path / "x.parquet"), "")
    with pytest.raises(ValueError, match="name the label's column"):
        datasets.Dataset.from_dict({"pixel_values": [[1.0]]}).to_parquet(tmp_path / "y.parquet")
        load_data(str(tmp_path / "y.parquet"), "")
    (tmp_path / "z.txt").write_text("hello")
    with pytest.raises(ValueError, match="files must end in one of"):
        load_data(str(tmp_path / "z.txt"), "")
