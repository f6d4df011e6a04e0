"""What does a training step of a ResNet-50 cost, and what of it is the kernels', the host's, the precision's?"""

from functools import partial

import torch

from hf_sharp_unlearn.benchmarks.gpu import runs
from hf_sharp_unlearn.benchmarks.gpu.gradients import compare
from hf_sharp_unlearn.benchmarks.gpu.record import Part, Skipped, run_part
from hf_sharp_unlearn.benchmarks.parts.trainers import image_model

MAIN = ("neggrad", "sharp_minmax", "trainer_2", "neggrad_asam")
ALL = (*MAIN, "sharp_minmax_foreach", "sharp_minmax_per_tensor")
# Pixels a side, precision, variants; in order of what is learnt from them. trainer_2: the union of both streams.
RUNS = (
    (224, "bf16 channels_last", ALL),
    (32, "tf32", ALL),
    (224, "tf32", MAIN),
    (32, "bf16 channels_last", MAIN),
    (224, "bf16", MAIN),
    (32, "bf16", MAIN[:2]),
    (32, "fp32", MAIN[:2]),
    (224, "fp32", MAIN[:2]),
)
TOY = ((32, "fp32", ALL), (32, "bf16 channels_last", ("sharp_minmax",)))
SWEEPS = ("norms", "finish", "displace", "copy", "compose", "update")  # kernels of the library, by name
RATIO, BUSY = 2.05, 0.90  # aims


def main() -> None:
    run_part("step", __doc__, run)


def run(part: Part) -> None:
    toy = {"channels": [4, 4, 8, 8], "stem_width": 4} if part.quick else {}
    make = partial(image_model, "resnet18" if part.quick else "resnet50", **toy)
    batch = 4 if part.quick else 128
    for place, (size, precision, variants) in enumerate(TOY if part.quick else RUNS):
        milliseconds = {}
        for variant in variants:
            found = part.attempt(
                f"{size} px, {precision}, {variant}",
                lambda v=variant, s=size, p=precision: one_run(part, make, v, s, p, batch),
                needs=8 if size == 224 else 5,
            )
            if found:
                milliseconds[variant] = found["step_ms"]
            part.free()
        base = milliseconds.get("neggrad")
        if base and len(milliseconds) > 1:
            ratios = {name: ms / base for name, ms in milliseconds.items() if name != "neggrad"}
            part.add(f"{size} px, {precision}, ratio to neggrad", **ratios)
        ratio = milliseconds["sharp_minmax"] / base if base and "sharp_minmax" in milliseconds else None
        part.aim(f"{size} px, {precision}, sharp_minmax / neggrad", ratio, at_most=RATIO)
        if place < (1 if part.quick else 2):  # at both sizes, while there is time
            inspect(part, make, size, precision, batch, milliseconds.get("sharp_minmax"))
        if place == 1:
            part.attempt("gradient differences", lambda: differences(part, make), needs=8)
            part.free()


def differences(part: Part, make) -> None:
    size, count, learnt = (32, 4, 2) if part.quick else (224, 64, 10)
    compare(part, make(size=size), size, count, learnt)


def one_run(part: Part, make, variant: str, size: int, precision: str, batch: int) -> dict:
    warm, steps = (1, 1) if part.quick else (4, 8)
    network, arguments = prepared(part, make(size=size), precision)
    # NegGrad+ and its kin go around the forget set anew; what splits the parameters reads it once before.
    data = sets(part, size, batch, warm + steps, all_of_it=variant.startswith("trainer"))
    return runs.timed(part, variant, network, data, batch, warm, steps, **arguments)


def inspect(part: Part, make, size: int, precision: str, batch: int, step_ms: float | None) -> None:
    """Waits, launches, tables; and the share of a step in which the GPU works."""

    def arguments():
        network, more = prepared(part, make(size=size), precision)
        return (part, "sharp_minmax", network, sets(part, size, batch, 12, False), batch), more

    def watch() -> dict:
        plain, named = arguments()
        return runs.watched(*plain, **named)

    def profile() -> dict:
        if not part.gpu:
            raise Skipped("there is no GPU to be busy")
        plain, named = arguments()
        profiled = runs.Profiled(steps=2, total=6)
        runs.train(*plain, 6, (profiled,), **named)
        kernels = profiled.kernels
        spent = sum(ms for _, ms in kernels.values()) / profiled.steps
        own = [kernels[name] for name in SWEEPS if name in kernels]
        return {
            "launches": sum(count for count, _ in kernels.values()) / profiled.steps,
            "of_sweeps": sum(count for count, _ in own) / profiled.steps,
            "kernel_ms": spent,
            "of_sweeps_ms": sum(ms for _, ms in own) / profiled.steps,
            "busy": spent / step_ms if step_ms else None,  # of a step that no profiler slowed down
        }

    title = f"{size} px, {precision}, sharp_minmax"
    found = part.attempt(f"{title}, a step seen from the host", watch, needs=8)
    part.aim(f"{title}, tables made in a settled step", found and found["rebuilds"], at_most=0)
    part.free()
    found = part.attempt(f"{title}, a step seen by the profiler", profile, needs=8)
    part.free()
    if size == 224:
        part.aim(f"{title}, GPU busy", found and found["busy"], at_least=BUSY)


def prepared(part: Part, network: torch.nn.Module, precision: str) -> tuple[torch.nn.Module, dict]:
    """The network and the arguments for a precision. fp32: TF32 off; else as cuDNN has it by default."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    network = network.to(part.device)
    if precision.endswith("channels_last"):
        network = network.to(memory_format=torch.channels_last)
    return network, {"bf16": precision.startswith("bf16")}


def sets(part: Part, size: int, batch: int, steps: int, all_of_it: bool) -> tuple[runs.Pool, runs.Pool]:
    """Retain and forget set: random pixels that lie on the device."""
    pools = []
    for seed in (0, 1):
        generator = torch.Generator(part.device).manual_seed(seed)
        pixels = torch.randn((batch, 3, size, size), generator=generator, device=part.device)
        pools.append({"pixel_values": pixels, "labels": [i % 10 for i in range(batch)]})
    return runs.Pool(pools[0], batch * steps), runs.Pool(pools[1], batch * steps if all_of_it else 2 * batch)


if __name__ == "__main__":
    main()
