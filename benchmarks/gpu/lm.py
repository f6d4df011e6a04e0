"""What does a step of a Llama of 1.2 B parameters cost, in time and memory: with all weights (float32 under bfloat16
autocast, AdamW), and with LoRA on a bfloat16 model?"""

import importlib.util

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from hf_sharp_unlearn.benchmarks.gpu import runs
from hf_sharp_unlearn.benchmarks.gpu.record import Part, Skipped, run_part

LLAMA = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
         "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True}  # fmt: skip
TOY = LLAMA | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
               "num_key_value_heads": 2, "vocab_size": 64}  # fmt: skip
RATIO = 2.05  # aim


def main() -> None:
    run_part("lm", __doc__, run)


def run(part: Part) -> None:
    for kind, warm, steps, needs in (("full", 2, 3, 12), ("LoRA", 3, 7, 8)):
        found = {}
        for variant in ("sharp_minmax", "neggrad"):
            found[variant] = part.attempt(
                f"{kind}, {variant}", lambda k=kind, v=variant, w=warm, s=steps: one_run(part, k, v, w, s), needs=needs
            )
            part.free()
        both = all(found.values())
        ratio = found["sharp_minmax"]["step_ms"] / found["neggrad"]["step_ms"] if both else None
        part.aim(f"{kind}, sharp_minmax / neggrad", ratio, at_most=RATIO)
        part.attempt(f"{kind}, a step seen from the host", lambda k=kind: watched(part, k), needs=needs)
        part.free()


def one_run(part: Part, kind: str, variant: str, warm: int, steps: int) -> dict:
    network, batch = model(part, kind), 2
    warm, steps = (1, 1) if part.quick else (warm, steps)
    found = runs.timed(part, variant, network, data(part, batch, warm + steps), batch, warm, steps,
                       optim="adamw_torch", bf16=True)  # fmt: skip
    trainable = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    return found | {"trainable": trainable, "tensors": sum(weight.requires_grad for weight in network.parameters())}


def watched(part: Part, kind: str) -> dict:
    batch = 2
    return runs.watched(part, "sharp_minmax", model(part, kind), data(part, batch, 12), batch,
                        optim="adamw_torch", bf16=True)  # fmt: skip


def model(part: Part, kind: str) -> torch.nn.Module:
    if kind == "LoRA" and importlib.util.find_spec("peft") is None:
        raise Skipped("peft is not installed")
    torch.manual_seed(0)
    with torch.device(part.device):
        network = AutoModelForCausalLM.from_config(LlamaConfig(**(TOY if part.quick else LLAMA)))
    if kind == "LoRA":
        from peft import LoraConfig, get_peft_model

        network = network.to(torch.bfloat16)  # peft makes its own weights float32
        network = get_peft_model(network, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    return network.to(part.device)


def data(part: Part, batch: int, steps: int) -> tuple[runs.Pool, runs.Pool]:
    """Retain and forget set: random tokens."""
    words, length = (64, 16) if part.quick else (LLAMA["vocab_size"], 512)
    sets = []
    for seed, count in ((0, batch * steps), (1, 2 * batch)):
        tokens = torch.randint(words, (2 * batch, length), generator=torch.Generator().manual_seed(seed))
        sets.append(runs.Pool({"input_ids": tokens, "labels": tokens}, count))
    return sets[0], sets[1]


if __name__ == "__main__":
    main()
