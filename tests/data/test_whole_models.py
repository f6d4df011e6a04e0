"""A model whose files lack a weight, or have one too many, is refused by name: transformers would draw it at random."""

import json
import shutil

import numpy as np
import peft
import pytest
import torch
from optional_packages import datasets
from parts import timm_resnet
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from hf_sharp_unlearn.commands import cli
from hf_sharp_unlearn.data import load_model

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    bert = BertConfig(vocab_size=9, max_position_embeddings=16, num_labels=2, **SIZES)
    BertForSequenceClassification(bert).save_pretrained(root / "classifier")
    BertForMaskedLM(bert).save_pretrained(root / "masked")
    LlamaForCausalLM(LlamaConfig(vocab_size=9, num_key_value_heads=2, **SIZES)).save_pretrained(root / "llama")
    timm_resnet().save_pretrained(root / "timm")
    base = LlamaForCausalLM.from_pretrained(root / "llama")
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"])
    peft.get_peft_model(base, lora).save_pretrained(root / "lora")
    return root


@pytest.fixture
def change(world, tmp_path):
    """change(model, weights=function on them, **config): a changed copy."""

    def make(name, weights=None, file="model.safetensors", **config):
        shutil.copytree(world / name, tmp_path / name, dirs_exist_ok=True)
        if weights is not None:
            tensors = load_file(tmp_path / name / file)
            weights(tensors)
            save_file(tensors, tmp_path / name / file, metadata={"format": "pt"})
        if config:
            path = tmp_path / name / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return str(tmp_path / name)

    return make


THREE = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
ATTENTION = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.mark.parametrize(
    ("weights", "config", "words"),
    [
        (lambda w: w.pop("classifier.bias"), {}, "lack classifier.bias.*--allow_new_head"),
        (lambda w: w.pop(ATTENTION), {}, f"lack {ATTENTION}"),
        (lambda w: w.update(extra=torch.ones(2)), {}, "not the model's are extra"),
        (None, THREE, r"classifier.weight \(2 x 8 in the files, 3 x 8 in the model\)"),
        (lambda w: w.update({ATTENTION: torch.zeros(8, 4)}), {}, r"query.weight \(8 x 4 in the files, 8 x 8"),
        (None, {"architectures": ["BertForMaskedLM"]}, "lack cls.predictions.*not the model's are .*classifier.bias"),
    ],
)
def test_weights_that_are_missing_or_left_over_are_named(change, weights, config, words):
    with pytest.raises(ValueError, match=f"No model could be loaded from .*{words}"):
        load_model(change("classifier", weights, **config))


def test_whole_models_load_as_they_are_tied_weights_and_adapters_too(world):
    for name in ("classifier", "masked", "llama"):
        own = load_file(world / name / "model.safetensors")
        loaded = load_model(str(world / name)).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in own.items())
    assert "lora" in type(load_model(str(world / "lora")).base_model).__name__.lower()


def test_files_that_are_cut_off_are_no_model(change):
    folder = change("llama")
    with open(f"{folder}/model.safetensors", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match="No model could be loaded"):
        load_model(folder)


def test_an_adapter_that_lacks_weights_is_refused_and_so_is_one_on_such_a_base(change, world):
    key = "base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight"
    with pytest.raises(ValueError, match=f"it lacks {key}"):
        load_model(change("lora", lambda w: w.pop(key), "adapter_model.safetensors"))
    with pytest.raises(ValueError, match="not its own are .*k_proj.lora_A"):
        load_model(change("lora", lambda w: w.update({key.replace("v_proj.lora_B", "k_proj.lora_A"): w[key].clone()}),
                          "adapter_model.safetensors"))  # fmt: skip
    base = change("llama", lambda w: w.pop("model.norm.weight"))
    path = f"{change('lora')}/adapter_config.json"
    with open(path) as file:
        config = json.load(file)
    with open(path, "w") as file:
        json.dump(config | {"base_model_name_or_path": base}, file)
    with pytest.raises(ValueError, match="lack model.norm.weight"):
        load_model(path.removesuffix("/adapter_config.json"))


def test_a_new_head_is_drawn_where_it_is_asked_for_and_a_new_body_never(change, capsys):
    folder = change("classifier", lambda w: w.pop("classifier.weight"))
    assert load_model(folder, new_head=True).classifier.weight.std() > 0
    assert "lack classifier.weight" in capsys.readouterr().out
    assert load_model(change("classifier", **THREE), new_head=True).num_labels == 3
    with pytest.raises(ValueError, match=f"{ATTENTION} are no head"):
        load_model(change("classifier", lambda w: w.pop(ATTENTION)), new_head=True)


def test_the_command_refuses_half_a_model_before_it_reads_data_unless_told_otherwise(change, tmp_path, capsys):
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    columns = {"pixel_values": list(draw.normal(size=(12, 1, 8, 8)).astype("float32")), "label": [0, 1, 2] * 4}
    kinds = {"pixel_values": datasets.Array3D((1, 8, 8), "float32"), "label": datasets.Value("int64")}
    datasets.Dataset.from_dict(columns, datasets.Features(kinds)).to_parquet(tmp_path / "t.parquet")
    folder = change("timm", lambda w: w.pop(next(name for name in w if name.endswith("fc.weight"))))
    command = ["unlearn", "--model", folder, "--train", str(tmp_path / "t.parquet"), "--forget_indices", "0", "1",
               "--use_cpu", "--max_steps", "1", "--svc-samples", "0"]  # fmt: skip
    assert cli.main([*command, "--output_dir", str(tmp_path / "a")]) == 1
    assert "fc.weight" in capsys.readouterr().err and not (tmp_path / "a").exists()
    for name in ("a", "b"):
        assert cli.main([*command, "--output_dir", str(tmp_path / name), "--allow_new_head"]) == 0
        assert "was drawn anew" in capsys.readouterr().out
    same = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert same[0] == same[1], "the head is drawn from --seed"
