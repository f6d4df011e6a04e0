"""Models that safetensors cannot hold as they are, empty parameters, and models that the user compiled himself."""

import pytest
import torch
from parts import Mlp, StopAt, assert_same, rows, timm_resnet, weights_of
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from hf_sharp_unlearn import SAM, NegGradPlus, SharpMinMax
from hf_sharp_unlearn.sharing import state_to_save

METHODS = [NegGradPlus(0.8, SAM(0.2)), SharpMinMax(0.8, overlap=False)]


class Odd(nn.Module):
    """Two names for one weight, a view, a part in channels_last, a parameter without elements."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inside, self.outside = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.outside.weight = self.inside.weight
        self.pixels = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)
        self.nothing = nn.Parameter(torch.zeros(0, 4))
        both = torch.arange(8.0)
        self.register_buffer("whole", both)
        self.register_buffer("part", both[4:])

    def forward(self, x, labels=None):
        hidden = self.outside(torch.tanh(self.inside(x)))
        logits = (
            self.pixels(torch.stack([hidden, x], 1).view(-1, 2, 2, 3)).flatten(1) + self.nothing.sum() + self.part[0]
        )
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_ties_views_and_layouts_are_saved_read_again_and_resumed(make_trainer, tmp_path, method):
    def make(name):
        return make_trainer(method, model=Odd(), save_strategy="steps", save_steps=2, output_dir=tmp_path / name)

    whole, first, second = make("whole"), make("parts"), make("parts")
    whole.train()
    first.add_callback(StopAt(4))
    first.train()
    second.train(resume_from_checkpoint=True)
    assert_same(weights_of(whole.model), weights_of(second.model))
    whole.save_model(tmp_path / "saved")
    again = Odd()
    again.load_state_dict(load_file(tmp_path / "saved" / "model.safetensors"))
    assert_same(weights_of(whole.model), weights_of(again))
    assert (
        again.outside.weight is again.inside.weight
        and again.pixels.weight.stride() == whole.model.pixels.weight.stride()
    )


def test_a_tie_that_transformers_does_not_know_of_is_saved_and_its_own_once(tmp_path, make_trainer):
    settings = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
                "num_attention_heads": 2, "num_key_value_heads": 2}  # fmt: skip
    for tied in (True, False):
        model = LlamaForCausalLM(LlamaConfig(**settings, tie_word_embeddings=tied))
        model.lm_head.weight = model.model.embed_tokens.weight
        data = [{"input_ids": [i % 8, 2, 3], "labels": [i % 8, 2, 3]} for i in range(12)]
        trainer = make_trainer("neggrad", model=model, data=data, max_steps=1)
        trainer.train()
        trainer.save_model(tmp_path / str(tied))
        assert ("lm_head.weight" in load_file(tmp_path / str(tied) / "model.safetensors")) is not tied
        assert_same(weights_of(model), weights_of(LlamaForCausalLM.from_pretrained(tmp_path / str(tied))))


def test_states_that_can_be_saved_are_not_copied():
    assert state_to_save(timm_resnet(), None).keys() == timm_resnet().timm_model.state_dict().keys()
    model = Mlp()
    state = model.state_dict()
    assert all(state_to_save(model, state)[name] is value for name, value in state.items())


class Extra(Mlp):
    def get_extra_state(self):
        return {"calls": 3}

    def set_extra_state(self, state):
        pass


def test_states_that_no_checkpoint_holds_are_refused_before_training(make_trainer):
    with pytest.raises(ValueError, match="model: _extra_state in its state_dict.* is a dict"):
        make_trainer("neggrad", model=Extra())
    model = Mlp()
    model.first = torch.compile(model.first, backend="eager")
    with pytest.raises(ValueError, match="its part first was wrapped by torch.compile.*model.first.compile()"):
        make_trainer("neggrad", model=model)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_model_that_the_user_compiled_is_trained_compiled_under_its_own_names(make_trainer, tmp_path, method):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def trained(model, name):
        trainer = make_trainer(method, model=model, data=rows(24), output_dir=tmp_path / name)
        trainer.train()
        trainer.save_model()
        return load_file(tmp_path / name / "model.safetensors")

    plain = trained(Mlp(), "plain")
    assert_same(plain, trained(torch.compile(Mlp(), backend=backend), "wrapped"))
    assert graphs, "it was compiled, by the backend that the user chose"
    inside = Mlp()
    inside.compile(backend=backend)
    assert_same(plain, trained(inside, "in place"))
