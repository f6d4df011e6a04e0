"""What the precision of a pass leaves of a perturbation: the difference of the gradients at w + eps and at w is what
sharpness-aware methods learn from. TF32 and bfloat16 round w + eps before they multiply with it."""

import contextlib

import torch
from torch import Tensor, nn

from hf_sharp_unlearn import ASAM, SAM
from hf_sharp_unlearn.benchmarks.gpu.record import Part
from hf_sharp_unlearn.kernels import backend_for

PRECISIONS = ("fp32", "fp32 again", "tf32", "bf16")  # again: the noise of sums in any order


def compare(part: Part, network: nn.Module, size: int, count: int, learnt: int) -> None:
    """A row for each sharpness: cosine to the difference under fp32, and length as a multiple of its.

    At random weights after `learnt` steps, on random pixels. eps is the same in all: from the gradient under fp32.
    """
    network = network.to(part.device).train()
    generator = torch.Generator(part.device).manual_seed(0)
    pixels = torch.randn((count, 3, size, size), generator=generator, device=part.device)
    labels = torch.arange(count, device=part.device) % 10
    weights = [weight for weight in network.parameters() if weight.requires_grad]

    def gradient(precision: str) -> list[Tensor]:
        with at(precision, part.device):
            loss = network(pixel_values=pixels, labels=labels).loss
        return list(torch.autograd.grad(loss, weights))

    for _ in range(learnt):
        for weight, grad in zip(weights, gradient("tf32"), strict=True):
            weight.data.sub_(grad, alpha=0.05)
    kernels, start = backend_for(part.device), [weight.data for weight in weights]
    clean = {precision: gradient(precision) for precision in PRECISIONS}
    for sharpness in (SAM(0.1), ASAM(1.0)):
        etas = [sharpness.eta_of(weight) for weight in start]
        length = kernels.norms(start, [clean["fp32"]], etas).sqrt().item()
        moved = [torch.empty_like(weight) for weight in start]
        kernels.displace(start, clean["fp32"], moved, etas, sharpness.rho / length)
        differences = {}
        for precision in PRECISIONS:
            put(weights, moved)
            try:
                ascended = gradient(precision)
            finally:
                put(weights, start)
            differences[precision] = torch._foreach_sub(ascended, clean[precision])
        values = {}
        for precision in PRECISIONS[1:]:
            cosine, ratio = relation(differences[precision], differences["fp32"])
            values |= {f"cos_{precision.replace(' ', '_')}": cosine, f"length_{precision.replace(' ', '_')}": ratio}
        share = relation(differences["fp32"], clean["fp32"])[1]
        part.add(f"gradient difference, {sharpness}, to fp32", **values, difference_to_gradient=share)


def put(weights: list[nn.Parameter], values: list[Tensor]) -> None:
    for weight, value in zip(weights, values, strict=True):
        weight.data = value


@contextlib.contextmanager
def at(precision: str, device: torch.device):
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    with torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext():
        yield


def relation(a: list[Tensor], b: list[Tensor]) -> tuple[float, float]:
    """(cosine, ||a|| / ||b||), in float64."""
    dot, aa, bb = (
        torch.stack([(x.double() * y.double()).sum() for x, y in zip(p, q, strict=True)]).sum().item()
        for p, q in ((a, b), (a, a), (b, b))
    )
    return (dot / (aa * bb) ** 0.5, (aa / bb) ** 0.5) if aa and bb else (float("nan"), float("nan"))
