"""The model card: rendered whole, true to the run, safe to publish, and written again after an evaluation."""

import dataclasses
import functools
import json
import os
import re

import pytest
import torch
from huggingface_hub import ModelCard
from parts import Mlp, images, rows, timm_resnet
from transformers import AutoModelForImageClassification

from hf_sharp_unlearn import (
    ASAM,
    METHODS,
    GradientAscent,
    NegGradPlus,
    Relearning,
    SharpMinMax,
    check_commitment,
    forget_commitment,
    split_forget,
)
from hf_sharp_unlearn.sharing.card_facts import hub_name_of, known_sources
from hf_sharp_unlearn.sharing.commitment import FILE_NAME
from hf_sharp_unlearn.sharing.shareable import shareable

FORGET = [3, 8, 11]


@pytest.fixture
def run(make_trainer, tmp_path):
    """A finished run on a timm model; keywords go to the arguments."""

    def made(method=None, train=True, **arguments):
        method = SharpMinMax(alpha=0.9, sharpness=ASAM(rho=0.5), fraction=0.25) if method is None else method
        trainer = make_trainer(
            method, timm_resnet(), images(24), forget=FORGET, max_steps=3, trainer={"eval_dataset": images(8, seed=2)},
            **arguments,
        )  # fmt: skip
        if train:
            trainer.train()
        return trainer

    return made


def card(trainer, **options):
    trainer.create_model_card(**options)
    path = f"{trainer.args.output_dir}/README.md"
    with open(path, encoding="utf-8") as file:
        return file.read(), ModelCard.load(path).data


def test_the_page_says_what_was_forgotten_how_and_at_what_cost(run):
    text, data = card(run(forget_selection="wrong | labels", retrain_seconds=1000.0, weight_decay=0.01))
    assert "made to forget 3 of its training samples with SharpMinMax" in text
    for row in ("| forget set | 3 samples |", "| retain set | 21 samples |", r"| selected | wrong \| labels |",
                "| `sharpness` | `ASAM(rho=0.5, eta=0.0, adapt_1d=True)` |", "| `alpha` | `0.9` |",
                "| `weight_decay` | `0.01` |", "| `learning_rate` | `0.1` |", "| optimizer steps | 3 |"):  # fmt: skip
        assert row in text, row
    for field in dataclasses.fields(SharpMinMax):
        assert f"| `{field.name}` |" in text
    assert re.search(r"\| unlearning \| [\d.]+ s \|", text) and "1,000.0 s, as stated by who ran it; unlearning" in text
    assert re.search(r"25\.00%\) are in the forget part", text) and "timm_model.layer1.0.conv1" in text
    assert "not a guarantee" in text and "arXiv 2506.13715" in text and "@inproceedings{tang2026sharpness" in text
    assert 'AutoModelForImageClassification.from_pretrained("out")' in text
    assert "No unlearning report was made" in text and not re.search(r"{[{%]|\n\n\n", text), "rendered whole"
    assert data.library_name == "transformers" and data.pipeline_tag == "image-classification"
    assert data.tags == ["timm", "machine-unlearning", "hf_sharp_unlearn", "sharp-minmax", "generated_from_trainer"]
    assert data.eval_results is None and data.base_model is None


def test_the_card_is_written_again_after_each_evaluation(run):
    trainer = run()
    first, _ = card(trainer, license="mit", dataset_tags="me/digits")
    metrics = trainer.evaluate()
    path = f"{trainer.args.output_dir}/README.md"
    with open(path) as file:
        second = file.read()
    assert f"{metrics['eval_forget_accuracy']:.4g}" in second and "| forget |" not in first
    assert ModelCard.load(path).data.license == "mit", "what was said once is kept"
    trainer.evaluate_unlearning(timm_resnet(seed=1), relearning=Relearning(samples=2, steps=2, every=1))
    with open(path) as file:
        third = file.read()
    assert "Beside a model retrained without the forget set: Tug-of-War" in third and "### Relearning" in third
    assert "It was not compared" in second and "It was not compared" not in third
    with open(f"{trainer.args.output_dir}/unlearning_report/report.json") as file:
        report = json.load(file)
    data = ModelCard.load(path).data
    results = {(r.metric_type, r.dataset_split): r.metric_value for r in data.eval_results}
    for split in ("forget", "retain", "test"):
        value = report["metrics"][f"accuracy/{split}"]["unlearned"]["value"]
        assert results["accuracy", split] == pytest.approx(value, abs=1e-6)
        assert {r.dataset_type for r in data.eval_results} == {"me/digits"}
    for plot in re.findall(r"\]\((unlearning_report/\w+\.png)\)", third):
        with open(f"{trainer.args.output_dir}/{plot}", "rb") as file:
            assert file.read(4) == b"\x89PNG"
    assert third.count("unlearning_report/") == 1 + 5


def test_no_card_is_written_unasked(run):
    trainer = run()
    trainer.evaluate()
    trainer.save_model()
    assert not os.path.exists(f"{trainer.args.output_dir}/README.md")


def test_the_commitment_binds_the_rows_and_shows_none(run):
    trainer = run()
    folder = trainer.args.output_dir
    text, _ = card(trainer)
    digest = re.search(r"hmac-sha256:([0-9a-f]{64})", text)[1]
    with open(f"{folder}/{FILE_NAME}") as file:
        kept = json.load(file)
    assert digest == kept["digest"] == forget_commitment(reversed(FORGET), bytes.fromhex(kept["salt"]))
    assert kept["salt"] not in text and set(kept) == {"salt", "digest", "rows"}
    assert card(trainer)[0] == text, "the salt is drawn once"
    assert check_commitment(FORGET, folder) and not check_commitment([3, 8, 12], folder)
    assert forget_commitment(FORGET, b"other") != digest


def test_without_row_numbers_the_card_says_so(make_trainer):
    data = rows(12)
    sets = {"forget_dataset": data[:3], "retain_dataset": data[3:]}
    trainer = make_trainer(NegGradPlus(), data=data, forget=[0], trainer=sets, max_steps=1)
    assert "none: the row numbers are not known" in card(trainer)[0]
    trainer = make_trainer(NegGradPlus(), data=data, forget=[0], trainer={**sets, "forget_indices": [5, 6, 7]})
    assert "hmac-sha256:" in card(trainer)[0]
    for wrong in ([5, 6], [5, 5, 6], ["a", "b", "c"]):
        with pytest.raises(ValueError, match="forget_indices has"):
            make_trainer(NegGradPlus(), data=data, forget=[0], trainer={**sets, "forget_indices": wrong})


def test_neither_token_nor_path_is_published(run, tmp_path):
    trainer = run(hub_token="hf_secret")
    card(trainer)
    trainer.save_model()
    for name in ("README.md", "config.json", "training_args.bin"):
        with open(f"{trainer.args.output_dir}/{name}", "rb") as file:
            content = file.read()
        assert b"hf_secret" not in content and str(tmp_path).encode() not in content, name
    args = torch.load(f"{trainer.args.output_dir}/training_args.bin", weights_only=False)
    assert type(args) is type(trainer.args) and args.learning_rate == trainer.args.learning_rate
    assert trainer.args.hub_token == "hf_secret"
    assert type(shareable(trainer.args)).__mro__[1] is type(trainer.args)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_card(run, name):
    method = METHODS[name](**({"classes": 3} if METHODS[name].relabel else {}))
    text, data = card(run(method))
    assert f"`{METHODS[name].__name__}`" in text and name.replace("_", "-") in data.tags
    assert ("### Partition" in text) is (method.fraction is not None)


def test_a_method_of_the_users_own_and_a_plain_module(make_trainer):
    @dataclasses.dataclass(frozen=True)
    class Mine(GradientAscent):
        strength: float = 2.0

    trainer = make_trainer(Mine(forget_loss=lambda outputs, inputs: outputs["loss"]), Mlp(), max_steps=1)
    trainer.train()
    text, data = card(trainer)
    assert "| `strength` | `2.0` |" in text and "mine" in data.tags and "<lambda>" in text
    assert "## Use" not in text and data.pipeline_tag is None
    assert "Mine, a method of its user's own" in text and __doc__ not in text, "not what a script says of itself"
    trainer = make_trainer(Mine(strength=functools.partial(open, "/home/me/people.csv")), Mlp(), max_steps=1)
    text, _ = card(trainer)
    assert "people.csv" not in text and "| `strength` | `partial` |" in text


def test_training_anew_takes_the_old_report_off_the_card(run):
    """A baseline measured before the training says nothing about the weights after it."""
    trainer = run(train=False)
    trainer.evaluate_unlearning(timm_resnet(seed=1), relearning=Relearning(samples=2, steps=2, every=1))
    assert "Beside a model retrained" in card(trainer)[0]
    trainer.train()
    text, data = card(trainer)
    assert "No unlearning report was made" in text and data.eval_results is None
    assert not os.listdir(f"{trainer.args.output_dir}/unlearning_report")
    trainer.evaluate_unlearning()
    assert "relearning.png" not in os.listdir(f"{trainer.args.output_dir}/unlearning_report")


def test_an_adapter_on_a_timm_model_is_saved(make_trainer):
    import peft

    model = peft.get_peft_model(timm_resnet(), peft.LoraConfig(r=2, target_modules=["fc"]))
    trainer = make_trainer(NegGradPlus(), model, images(24), max_steps=2, save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.save_model()
    assert os.path.exists(f"{trainer.args.output_dir}/adapter_model.safetensors")


def test_a_card_without_a_forget_set(make_trainer):
    trainer = make_trainer(METHODS["finetune"](), trainer={"forget_dataset": None}, max_steps=1)
    assert "forget 0 of its training samples" in card(trainer)[0]


def test_where_model_and_data_come_from(tmp_path, monkeypatch):
    model = timm_resnet()
    for name, expected in (("me/model", "me/model"), ("gpt2", "gpt2"), ("", None), (str(tmp_path), None),
                           ("./out", None), ("a/b/c", None)):  # fmt: skip
        model.config._name_or_path = name
        assert hub_name_of(model) == expected
    (tmp_path / "me").mkdir()
    (tmp_path / "me" / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    model.config._name_or_path = "me/model"
    assert hub_name_of(model) is None, "a folder of that name is here"

    class Data:
        class info:
            download_checksums = {"hf://datasets/me/digits@abc/train.parquet": None, "data.csv": None}

    assert known_sources(Data, [], Data) == ["me/digits"]


def test_a_timm_model_loads_with_timm_and_resumes(run, tmp_path):
    """Its weights are saved under timm's names, in checkpoints too; what config does not say is added."""
    import timm

    trainer = run(save_strategy="steps", save_steps=1)
    trainer.model.config.pretrained_cfg = None
    trainer.save_model()
    folder = trainer.args.output_dir
    native = timm.create_model(f"local-dir:{folder}", pretrained=True)
    for name, value in native.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[f"timm_model.{name}"])
    back = AutoModelForImageClassification.from_pretrained(folder)
    for name, value in back.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name])
    again = run(train=False, save_strategy="steps", save_steps=1)
    again.train(resume_from_checkpoint=f"{folder}/checkpoint-1")
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name]), "resumed equals uninterrupted"
    assert "(since the last resume)" in card(again)[0]


def test_the_metadata_takes_ids_on_the_hub_only(run, tmp_path):
    """Scripts pass on whatever they were given, folders included."""
    trainer = run()
    trainer.evaluate()
    text, data = card(trainer, finetuned_from=str(tmp_path), dataset="My animals", dataset_tags=["me/animals", "./x y"])
    assert data.base_model is None and data.datasets == ["me/animals"] and str(tmp_path) not in text
    assert {(r.dataset_name, r.dataset_type) for r in data.eval_results} == {("My animals", "me/animals")}
    assert card(trainer, finetuned_from="me/model")[1].base_model == "me/model"


def test_split_forget_remembers_its_rows_and_other_sets_do_not():
    import datasets

    from hf_sharp_unlearn.data.sets import rows_of

    table = datasets.Dataset.from_dict({"x": list(range(6)), "labels": [0, 1] * 3})
    forget, retain = split_forget(table, [4, 1])
    assert rows_of(forget) == [4, 1] and rows_of(retain) is None
    assert rows_of(forget.map(lambda row: row)) is None and rows_of(forget.select([0])) is None
