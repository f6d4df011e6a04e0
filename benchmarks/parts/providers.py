"""The kernel part of one Sharp MinMax step, done in several ways on the same tensors.

The two backward passes are left out: their results r0, f0, r1, f1 lie ready. Each provider does

    eps_R, eps_F from the norms of (1 - m) r0 and m f0; the weights at w + eps_R, then at w + eps_F, in memory where a
    backward pass could use them; the true weights again; d = where(m, 2 f0 - f1, r1), clipped to a norm of 1 if asked;
    one step of SGD with momentum and weight decay

    per_tensor  a Python loop over tensors, as public SAM code does it: clone, add, and the old tensor back
    foreach     torch's multi-tensor functions, and its fused SGD
    compiled    the loop, through torch.compile as one graph
    reference, tiled, triton     the backends of the library, in the plan that the trainer runs
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hf_sharp_unlearn import kernels
from hf_sharp_unlearn.benchmarks.parts.shapes import Shapes
from hf_sharp_unlearn.kernels import SGD, Direction

LR, MOMENTUM, DECAY, RHO, LIMIT = 0.01, 0.9, 5e-4, 0.1, 1.0


@dataclass
class Tensors:
    """Tensors of a step; r0 and f0, and r1 and f1, are lists of one shape each, like the weights."""

    w: list[Tensor]
    momenta: list[Tensor]
    shadows: list[Tensor]
    r0: list[Tensor]
    f0: list[Tensor]
    r1: list[Tensor]
    f1: list[Tensor]
    masks: list[Tensor]

    @classmethod
    def make(cls, shapes: Shapes, device: torch.device, dtype: torch.dtype = torch.float32) -> "Tensors":
        """dtype: of weights and gradients; momenta are float32."""
        generator = torch.Generator(device).manual_seed(0)

        def normal(scale):
            return [torch.randn(s, generator=generator, device=device).mul_(scale).to(dtype) for s in shapes]

        masks = [torch.rand(s, generator=generator, device=device) < 0.3 for s in shapes]
        w, gradients = normal(0.05), [normal(1e-3) for _ in range(4)]
        momenta = [torch.zeros_like(x, dtype=torch.float32) for x in w]
        return cls(w, momenta, [torch.empty_like(x) for x in w], *gradients, masks)


class PerTensor:
    """Two SAM wrappers, as public code writes them: the gradient masked, the norm of stacked norms, weight and gradient
    cloned, g0 + s (g1 - g0), the old tensor back (see the descriptions of the SAM step in arXiv 2010.01412 and of the
    Sharp MinMax step in arXiv 2506.13715). Masking in place leaves what the other providers read as it was."""

    def __init__(self, data: Tensors, clip: bool):
        self.data, self.clip = data, clip
        self.inverse = [~mask for mask in data.masks]
        self.weights = [w.clone() for w in data.w]  # its own: their addresses change in every step

    def run(self) -> None:
        d = self.data
        retain = self.half(d.r0, d.r1, self.inverse, 1.0)
        forget = self.half(d.f0, d.f1, d.masks, -1.0)
        grads = [a + b for a, b in zip(retain, forget, strict=True)]
        if self.clip:
            norm = torch.norm(torch.stack([torch.norm(g) for g in grads]))
            coefficient = torch.clamp(LIMIT / (norm + 1e-6), max=1.0)
            for g in grads:
                g.mul_(coefficient)
        for w, g, v in zip(self.weights, grads, d.momenta, strict=True):
            g = g.add(w, alpha=DECAY)
            v.mul_(MOMENTUM).add_(g)
            w.add_(v, alpha=-LR)

    def half(self, first: list[Tensor], second: list[Tensor], masks: list[Tensor], sign: float) -> list[Tensor]:
        weights, state = self.weights, []
        for g, m in zip(first, masks, strict=True):
            g.mul_(m)
        scale = RHO / torch.norm(torch.stack([(1.0 * g).norm(p=2) for g in first]))
        for w, g in zip(weights, first, strict=True):
            state.append((w.clone(), g.clone()))
            w.add_(1.0 * g * scale.to(w))
        grads = []
        for w, g, m, (old_w, old_g) in zip(weights, second, masks, state, strict=True):
            g.mul_(m)
            grads.append(old_g + sign * (g - old_g))
            w.data = old_w
        return grads


class Foreach(PerTensor):
    """The same with torch's multi-tensor functions, in as few passes as they allow (lam = 1), and its fused SGD."""

    def __init__(self, data: Tensors, clip: bool):
        super().__init__(data, clip)
        self.weights = data.w

    def run(self) -> None:
        d = self.data
        self.perturb_and_back(d.r0, self.inverse)
        self.perturb_and_back(d.f0, d.masks)
        torch._foreach_mul_(d.r1, self.inverse)
        torch._foreach_mul_(d.f1, d.masks)
        grads = torch._foreach_mul(d.f0, 2.0)
        torch._foreach_sub_(grads, d.f1)
        torch._foreach_add_(grads, d.r1)
        if self.clip:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            torch._foreach_mul_(grads, torch.clamp(LIMIT / (norm + 1e-6), max=1.0))
        torch._fused_sgd_(
            d.w,
            grads,
            d.momenta,
            weight_decay=DECAY,
            momentum=MOMENTUM,
            lr=LR,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            is_first_step=False,
        )

    def perturb_and_back(self, grads: list[Tensor], masks: list[Tensor]) -> None:
        d = self.data
        torch._foreach_mul_(grads, masks)
        eps = torch._foreach_mul(grads, RHO / torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads))))
        torch._foreach_copy_(d.shadows, d.w)
        torch._foreach_add_(d.w, eps)
        torch._foreach_copy_(d.w, d.shadows)


class Compiled(PerTensor):
    """One graph: it writes w + eps_R and w + eps_F to the shadows, so that neither can be optimised away."""

    def __init__(self, data: Tensors, clip: bool):
        super().__init__(data, clip)
        self.weights = data.w
        self.second = [torch.empty_like(w) for w in data.w]
        self.step = torch.compile(self.one_step, fullgraph=True, dynamic=False)

    def run(self) -> None:
        d = self.data
        self.step(d.w, d.momenta, d.shadows, self.second, d.r0, d.f0, d.r1, d.f1, d.masks)

    def one_step(self, weights, momenta, first, second, r0, f0, r1, f1, masks) -> None:
        def scale(grads, parts):
            squares = [torch.where(m, g, 0.0).square().sum() for g, m in zip(grads, parts, strict=True)]
            return RHO / torch.stack(squares).sum().sqrt()

        inverse = [~m for m in masks]
        for outs, grads, parts in ((first, r0, inverse), (second, f0, masks)):
            factor = scale(grads, parts)
            for o, w, g, m in zip(outs, weights, grads, parts, strict=True):
                o.copy_(w + torch.where(m, g, 0.0) * factor)
        d = [torch.where(m, 2 * a - b, r) for m, a, b, r in zip(masks, f0, f1, r1, strict=True)]
        if self.clip:
            norm = torch.stack([g.square().sum() for g in d]).sum().sqrt()
            coefficient = torch.clamp(LIMIT / (norm + 1e-6), max=1.0)
            d = [g * coefficient for g in d]
        for w, g, v in zip(weights, d, momenta, strict=True):
            v.copy_(v * MOMENTUM + g + w * DECAY)
            w.copy_(w - v * LR)


class Library:
    """A backend, in the plan of `UnlearningTrainer`: norms, two shadows, compose with its norm, update."""

    def __init__(self, data: Tensors, clip: bool, backend: str):
        self.data, self.clip, self.weights = data, clip, data.w
        self.kernels = kernels.load(backend)
        self.masks = self.kernels.pack(data.masks, data.w)
        self.none = [None] * len(data.w)
        self.rules = [SGD(LR, MOMENTUM, 0.0, DECAY)] * len(data.w)

    def run(self) -> None:
        d, k = self.data, self.kernels
        sums = k.norms(d.w, [d.r0, d.f0], self.none, self.masks, [False, True]).tolist()
        k.displace(d.w, d.r0, d.shadows, self.none, RHO / sums[0] ** 0.5, self.masks, False)
        k.displace(d.w, d.f0, d.shadows, self.none, RHO / sums[1] ** 0.5, self.masks, True)
        # Over r1, as in the trainer; composing again gives the same.
        grads, squares = k.compose(Direction(None, d.r1, d.f0, d.f1, self.masks))
        norm = squares.item() ** 0.5
        scale = min(1.0, LIMIT / (norm + 1e-6)) if self.clip else 1.0
        k.sgd(d.w, Direction(r0=grads), d.momenta, self.rules, scale)


class OneSweep(Library):
    """Compose and update in one sweep: what a training loop without a check of the norm can do."""

    def run(self) -> None:
        d, k = self.data, self.kernels
        sums = k.norms(d.w, [d.r0, d.f0], self.none, self.masks, [False, True]).tolist()
        k.displace(d.w, d.r0, d.shadows, self.none, RHO / sums[0] ** 0.5, self.masks, False)
        k.displace(d.w, d.f0, d.shadows, self.none, RHO / sums[1] ** 0.5, self.masks, True)
        k.sgd(d.w, Direction(None, d.r1, d.f0, d.f1, self.masks), d.momenta, self.rules)


def make(name: str, data: Tensors, clip: bool):
    """A provider by name; raises KeyError for an unknown one."""
    simple = {"per_tensor": PerTensor, "foreach": Foreach, "compiled": Compiled}
    if name in simple:
        return simple[name](data, clip)
    if name.endswith("_one_sweep"):
        return OneSweep(data, clip, name.removesuffix("_one_sweep"))
    return Library(data, clip, name)


PROVIDERS = ("per_tensor", "foreach", "compiled", *(b + s for b in kernels.BACKENDS for s in ("", "_one_sweep")))


def names_for(device: torch.device) -> list[str]:
    """Providers that can run on a device, the baselines first."""
    own = ["tiled", "tiled_one_sweep"] if device.type == "cpu" else ["triton", "triton_one_sweep"]
    return ["per_tensor", "foreach", "compiled", "reference", *own]
