"""A causal LM (tiny Llama from a config), full fine-tune and LoRA: a smoke test that it forgets and keeps."""

import pytest
import torch
from parts import assert_same, differs, weights_of
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from hf_sharp_unlearn import SAM, NegGradPlus, SharpMinMax


def llama(seed: int = 0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=32, max_position_embeddings=32, **sizes))


def sentences(count=24, length=8, seed=0):
    """Token ids of different lengths, padded; the prompt and the padding are no targets."""
    generator = torch.Generator().manual_seed(seed)
    data = []
    for i in range(count):
        ids = torch.randint(1, 32, (length,), generator=generator)
        labels, attention = ids.clone(), torch.ones_like(ids)
        labels[:2] = -100
        pad = i % 4
        if pad:
            ids[-pad:], labels[-pad:], attention[-pad:] = 0, -100, 0
        data.append({"input_ids": ids, "attention_mask": attention, "labels": labels})
    return data


def memorised(make_trainer, model):
    """Fine-tuning on everything: alpha = 1 with the forget set among the retained."""
    data = sentences()
    trainer = make_trainer(
        NegGradPlus(1.0),
        model=model,
        trainer={"forget_dataset": None, "retain_dataset": data},
        num_train_epochs=25,
        optim="adamw_torch",
        learning_rate=1e-2,
    )
    trainer.train()
    return trainer.model


@pytest.mark.parametrize(
    "method", [NegGradPlus(0.7), NegGradPlus(0.7, SAM(0.05)), SharpMinMax(0.7, SAM(0.05), overlap=False)], ids=str
)
def test_a_causal_lm_forgets_and_keeps(make_trainer, method):
    model = memorised(make_trainer, llama())
    trainer = make_trainer(method, model=model, data=sentences(), learning_rate=0.05, num_train_epochs=6)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert before["eval_forget_accuracy"] > 0.9 < before["eval_retain_accuracy"]
    assert after["eval_forget_loss"] > before["eval_forget_loss"] + 0.5
    assert after["eval_forget_accuracy"] < after["eval_retain_accuracy"] - 0.2


def test_lora_moves_the_adapter_only_and_keeps_its_partition(make_trainer, tmp_path):
    base = llama()
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # an adapter that has learned something
            torch.nn.init.normal_(weight, std=0.1)
    trainer = make_trainer(
        SharpMinMax(0.8, fraction=0.2, overlap=False),
        model=model,
        data=sentences(),
        num_train_epochs=3,
        save_strategy="steps",
        save_steps=7,
        output_dir=tmp_path / "lora",
    )
    start = weights_of(model)
    trainer.train()
    end = weights_of(model)
    adapter = {name for name in start if "lora_" in name}
    assert_same(
        {n: v for n, v in start.items() if n not in adapter}, {n: v for n, v in end.items() if n not in adapter}
    )
    assert differs({n: start[n] for n in adapter}, {n: end[n] for n in adapter})
    assert set(trainer.partition.masks) == {n for n, w in model.named_parameters() if w.requires_grad}
    assert 0 <= trainer.evaluate()["eval_retain_accuracy"] <= 1

    again = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    resumed = make_trainer(
        SharpMinMax(0.8, fraction=0.2, overlap=False),
        model=again,
        data=sentences(),
        num_train_epochs=3,
        output_dir=tmp_path / "lora",
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "lora" / "checkpoint-7"))
    assert_same(weights_of(resumed.model), end)


def test_a_token_outside_the_vocabulary_is_refused(make_trainer):
    data = sentences()
    data[3]["labels"][4] = 32
    with pytest.raises(ValueError, match="forget_dataset.*32 classes.*32"):
        make_trainer(NegGradPlus(0.8), model=llama(), data=data)


def test_an_epoch_counts_tokens_of_both_streams(make_trainer):
    trainer = make_trainer(
        NegGradPlus(0.8), model=llama(), data=sentences(), include_num_input_tokens_seen="all", max_steps=1
    )
    trainer.train()
    assert trainer.state.num_input_tokens_seen == 2 * 4 * 8
