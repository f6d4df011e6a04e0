"""Which position of the logits a label belongs to: decided by what a model's own loss does, shown by computing it."""

import contextlib

import pytest
import torch
import transformers
from parts import Mlp
from torch import nn
from torch.nn import functional as F
from transformers.loss.loss_utils import ForMaskedLMLoss
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_sharp_unlearn.metrics import collect_outputs
from hf_sharp_unlearn.step import shifts_labels

# Sizes under whatever names configs have for them.
SIZES = {
    **dict.fromkeys("hidden_size n_embd d_model embedding_size emb_dim dim".split(), 16),
    **dict.fromkeys("intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff d_inner dff dim_ff".split(), 32),
    **dict.fromkeys("num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers".split(), 2),
    **dict.fromkeys("num_encoder_layers num_decoder_layers num_key_value_heads".split(), 2),
    **dict.fromkeys("num_attention_heads n_head n_heads num_heads".split(), 2),
    **dict.fromkeys("encoder_attention_heads decoder_attention_heads".split(), 2),
    **dict.fromkeys("vocab_size n_token max_position_embeddings n_positions n_ctx max_target_positions".split(), 32),
    **{"head_dim": 8, "d_kv": 8, "dim_head": 8, "d_inner": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "rotary_dim": 4,
}
# Causal heads of transformers whose names say nothing, or the wrong thing, of their loss; then others for comparison.
ODD = """GPT2LMHeadModel BertLMHeadModel BertGenerationDecoder CTRLLMHeadModel OpenAIGPTLMHeadModel XLMWithLMHeadModel
XLNetLMHeadModel BartForCausalLM BigBirdPegasusForCausalLM BlenderbotForCausalLM BlenderbotSmallForCausalLM
CpmAntForCausalLM MBartForCausalLM MvpForCausalLM PLBartForCausalLM PegasusForCausalLM TrOCRForCausalLM
WhisperForCausalLM""".split()
OTHERS = """LlamaForCausalLM GPTNeoXForCausalLM RobertaForCausalLM ElectraForCausalLM OPTForCausalLM BertForMaskedLM
BartForConditionalGeneration T5ForConditionalGeneration PegasusForConditionalGeneration BertForTokenClassification
DistilBertForMaskedLM""".split()


def tiny(name):
    torch.manual_seed(0)
    cls = getattr(transformers, name)
    config = cls.config_class()
    config.decoder_start_token_id = 0
    for size, value in SIZES.items():
        with contextlib.suppress(NotImplementedError):  # XLNet has no limit of positions to set
            if hasattr(config, size):
                setattr(config, size, value)
    if hasattr(config, "is_decoder"):
        config.is_decoder = any(word in name for word in ("Causal", "LMHead", "Decoder"))
    return cls(config).eval()


def cross_entropy(logits, labels):
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), labels.reshape(-1))


def shifts_in_fact(model):
    """From the model's loss on random tokens, one of them masked."""
    ids = torch.randint(3, 30, (2, 9), generator=torch.Generator().manual_seed(1))
    if getattr(model.config, "num_labels", 2) == 2 and "TokenClassification" in type(model).__name__:
        labels = ids % 2
    else:
        labels = ids.clone()
    labels[0, 4] = -100
    for weight in model.parameters():  # far from uniform, so that the two losses differ
        weight.data += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    with torch.no_grad():
        loss, logits = model(input_ids=ids, labels=labels, return_dict=True).to_tuple()[:2]
    losses = {True: cross_entropy(logits[:, :-1], labels[:, 1:]), False: cross_entropy(logits, labels)}
    assert abs(losses[True] - losses[False]) > 1e-3 * losses[True]
    (found,) = [shift for shift, value in losses.items() if torch.allclose(loss.float(), value, rtol=1e-4)]
    return found


@pytest.mark.parametrize("name", [*ODD, *OTHERS])
def test_labels_are_shifted_where_the_models_loss_shifts_them(name):
    model = tiny(name)
    assert shifts_labels(model) == shifts_in_fact(model)


def test_no_causal_head_of_transformers_is_missing_from_the_list():
    """Of those whose class name alone would not tell: a new one must be added above, and be right."""
    values = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    names = {name for value in values for name in ([value] if isinstance(value, str) else value)}
    unnamed = {name for name in names if "ForCausalLM" not in name and "ForConditionalGeneration" not in name}
    known = {"ReformerModelWithLMHead"}  # hashing attention wants sizes of its own
    assert unnamed - known <= set(ODD)
    assert shifts_labels(transformers.ReformerModelWithLMHead.__new__(transformers.ReformerModelWithLMHead)) is True


def test_wrapped_models_and_subclasses_are_what_is_inside():
    import peft

    gpt2, bart = tiny("GPT2LMHeadModel"), tiny("BartForCausalLM")
    lora = peft.LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    assert shifts_labels(peft.get_peft_model(gpt2, lora))
    assert shifts_labels(torch.compile(tiny("GPT2LMHeadModel"), backend="eager"))

    class Renamed(transformers.GPT2LMHeadModel):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    class Own(transformers.GPT2LMHeadModel):
        def forward(self, input_ids=None, labels=None, **kwargs):
            logits = super().forward(input_ids, **kwargs).logits
            return {"loss": nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}

    class OwnShift(nn.Module):
        def forward(self, input_ids, labels):
            logits = nn.functional.one_hot(input_ids, 5).float()
            shift_logits, shift_labels = logits[:, :-1], labels[:, 1:]
            return {"loss": nn.functional.cross_entropy(shift_logits.flatten(0, 1), shift_labels.flatten())}

    class Holder(nn.Module):
        def __init__(self, part):
            super().__init__()
            self.part = part

        def forward(self, input_ids, labels=None):
            return self.part(input_ids, labels=labels)

    assert shifts_labels(Renamed(gpt2.config)) and not shifts_labels(Own(gpt2.config)) and shifts_labels(OwnShift())
    assert shifts_labels(Holder(gpt2)) and not shifts_labels(Holder(bart)) and not shifts_labels(Mlp())
    gpt2.loss_function = lambda logits, labels, vocab_size, **_: logits.sum()
    assert shifts_labels(gpt2), "a loss in place of the causal one is taken to shift as that does"
    gpt2.loss_function = ForMaskedLMLoss
    assert not shifts_labels(gpt2), "what a loss of transformers does is known"


def test_an_encoder_decoder_that_hands_its_labels_over_as_shifted_does_not_shift():
    sizes = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 16,
        "pad_token_id": 0,
        "decoder_start_token_id": 1,
    }
    sizes |= {f"{half}_num_{what}": 2 for half in ("encoder", "decoder")
              for what in ("hidden_layers", "attention_heads", "key_value_heads")}  # fmt: skip
    torch.manual_seed(0)
    model = transformers.MoonshineForConditionalGeneration(transformers.MoonshineConfig(**sizes)).eval()
    labels = torch.randint(3, 30, (2, 7))
    with torch.no_grad():
        outputs = model(input_values=torch.randn(2, 2000), labels=labels)
    as_they_are = torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(outputs.loss, as_they_are)
    assert not shifts_labels(model)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "BartForCausalLM", "XLNetLMHeadModel"])
def test_the_report_measures_the_models_own_loss(name):
    """Its mean over samples of the same length, and next-token accuracy where the next token is predicted."""
    model = tiny(name)
    ids = torch.randint(3, 30, (5, 7), generator=torch.Generator().manual_seed(2))
    data = [{"input_ids": row, "labels": row} for row in ids]
    outputs = collect_outputs(model, data, features=False, progress=False)
    with torch.no_grad():
        loss, logits = model(input_ids=ids, labels=ids, return_dict=True).to_tuple()[:2]
    assert outputs.loss.mean() == pytest.approx(float(loss), rel=1e-4)
    guesses, truth = logits.argmax(-1), ids
    if shifts_labels(model):
        guesses, truth = guesses[:, :-1], truth[:, 1:]
    assert outputs.correct.mean() == pytest.approx(float((guesses == truth).float().mean()), abs=1e-6)


def test_a_gpt2_is_trained_and_evaluated_by_next_tokens(make_trainer):
    """Memorised rows: accuracy near 1, not the share of tokens that repeat."""
    from hf_sharp_unlearn import FineTune

    ids = torch.randint(3, 32, (12, 8), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": row, "labels": row} for row in ids]
    size = {"vocab_size": 32, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 16}
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**size, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))
    settings = {"num_train_epochs": 60, "learning_rate": 5e-3, "optim": "adamw_torch", "per_device_train_batch_size": 8}
    trainer = make_trainer(FineTune(), model=model, data=data, forget=[0], **settings)
    trainer.train()
    with torch.no_grad():
        logits = model.eval()(ids[1:]).logits
    right = (logits[:, :-1].argmax(-1) == ids[1:, 1:]).float().mean()
    assert right > 0.8 and trainer.evaluate()["eval_retain_accuracy"] == pytest.approx(float(right))
