"""What do CUDA graphs save where the host is the bottleneck: a ResNet-18 on small pictures, its passes compiled with
torch_compile_mode="reduce-overhead"? And are the weights those of the run without?"""

from functools import partial

import torch
from torch.utils.data import Subset

from hf_sharp_unlearn.benchmarks.gpu import runs, step
from hf_sharp_unlearn.benchmarks.gpu.record import Part, run_part
from hf_sharp_unlearn.benchmarks.parts.trainers import image_model

SIZE, BATCH = 32, 128
# Difference of the weights after three steps, in lengths of the way that they went: BatchNorm magnifies rounding.
TOLERANCE = 0.05


def main() -> None:
    run_part("graphs", __doc__, run)


def run(part: Part) -> None:
    # Inductor's code on a CPU takes a C++ compiler a minute, and has no graphs: there only the way is tried.
    how = {"torch_compile_backend": "aot_eager"} if part.quick else {"torch_compile_mode": "reduce-overhead"}
    ways = {"as it is": {}, "graphs": {"torch_compile": True, **how}}
    part.attempt("weights after three steps", lambda: compared(part, ways), needs=30)
    for variant in ("sharp_minmax",) if part.quick else ("sharp_minmax", "neggrad"):
        found = {}
        for way, arguments in ways.items():
            title = f"{SIZE} px, tf32, {variant}, {way}"
            found[way] = part.attempt(title, lambda v=variant, a=arguments: timed(part, v, a), needs=15)
            part.free()
        if all(found.values()):
            times = found["as it is"]["step_ms"] / found["graphs"]["step_ms"]
            part.add(f"{SIZE} px, tf32, {variant}, times faster with graphs", ratio=times)


def compared(part: Part, ways: dict[str, dict]) -> dict:
    """Two micro-batches in a window, and a last batch that is shorter: a graph of its own."""
    ends = []
    for arguments in ways.values():
        torch.compiler.reset()
        network, more = step.prepared(part, small(part), "fp32")
        start = flat(network)
        retain, forget = step.sets(part, SIZE, batch(part), 3, False)
        data = Subset(retain, range(5 * batch(part) // 2)), Subset(forget, range(3 * batch(part) // 2))
        runs.train(part, "sharp_minmax", network, data, batch(part), 3, (), gradient_accumulation_steps=2,
                   **more, **arguments)  # fmt: skip
        ends.append(flat(network))
    off = ((ends[1] - ends[0]).norm() / (ends[0] - start).norm()).item()
    return {"status": "passed" if off < TOLERANCE else "failed", "off": off}


def timed(part: Part, variant: str, arguments: dict) -> dict:
    torch.compiler.reset()
    warm, steps = (1, 1) if part.quick else (8, 20)
    network, more = step.prepared(part, small(part), "tf32")
    data = step.sets(part, SIZE, batch(part), warm + steps, False)
    return runs.timed(part, variant, network, data, batch(part), warm, steps, **more, **arguments)


def small(part: Part) -> torch.nn.Module:
    torch.manual_seed(0)
    toy = {"channels": [4, 4, 8, 8], "stem_width": 4} if part.quick else {}
    return partial(image_model, "resnet18", **toy)(size=SIZE)


def batch(part: Part) -> int:
    return 4 if part.quick else BATCH


def flat(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().double().flatten() for weight in network.parameters()])


if __name__ == "__main__":
    main()
