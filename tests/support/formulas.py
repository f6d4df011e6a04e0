"""The formulas of papers, in float64 by functional autograd: nothing of the library computes here."""

import torch
from parts import Mlp, rows
from torch.func import functional_call

from hf_sharp_unlearn import ASAM, SAM

RETAIN, FORGET = rows(8, seed=1), rows(8, seed=2)


def gradient_at(model, weights, batch, coefficient):
    """d/dw coefficient * mean CE, by functional autograd; nothing of the library is used."""
    leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
    x, y = torch.stack([row["x"] for row in batch]), torch.tensor([row["labels"] for row in batch])
    loss = coefficient * functional_call(model, leaves, (x, y))["loss"]
    return dict(zip(leaves, torch.autograd.grad(loss, leaves.values()), strict=True))


def transform(sharpness, name, weights):
    weight = weights[name]
    if isinstance(sharpness, SAM) or (weight.ndim <= 1 and not sharpness.adapt_1d):
        return torch.ones_like(weight)
    return weight.abs() + sharpness.eta


def shifted(sharpness, weights, gradient):
    scales = {name: transform(sharpness, name, weights) for name in weights}
    length = sum((scales[name] * gradient[name]).pow(2).sum() for name in weights).sqrt()
    factor = 0 if length == 0 else sharpness.rho / length
    return {name: weights[name] + factor * scales[name] ** 2 * gradient[name] for name in weights}


def masks_for(fraction):
    model = Mlp(dtype=torch.float64)
    total = sum(value.numel() for value in model.parameters())
    gradient = gradient_at(model, dict(model.named_parameters()), FORGET, 1.0)
    flat = torch.cat([value.abs().reshape(-1) for value in gradient.values()])
    keep = torch.zeros(total, dtype=torch.bool)
    keep[flat.argsort(descending=True)[: round(fraction * total)]] = True
    pieces = keep.split([value.numel() for value in gradient.values()])
    return {name: piece.view_as(gradient[name]) for name, piece in zip(gradient, pieces, strict=True)}


SHARPNESS = [SAM(0.3), ASAM(0.7), ASAM(0.7, eta=0.1, adapt_1d=False)]


def weights():
    return {name: value.detach() for name, value in Mlp(dtype=torch.float64).named_parameters()}


def gauss_newton(batch):
    """The whole matrix: mean over samples of J^T (diag(p) - p p^T) J."""
    model, w = Mlp(dtype=torch.float64), weights()
    sizes = [value.numel() for value in w.values()]
    flat = torch.cat([value.reshape(-1) for value in w.values()])
    x = torch.stack([row["x"] for row in batch])

    def logits(vector):
        pieces = [p.view_as(v) for p, v in zip(vector.split(sizes), w.values(), strict=True)]
        return functional_call(model, dict(zip(w, pieces, strict=True)), (x,))["logits"]

    jacobian = torch.autograd.functional.jacobian(logits, flat)  # (batch, classes, parameters)
    chance = logits(flat).softmax(-1)
    hessian = torch.diag_embed(chance) - chance[:, :, None] * chance[:, None, :]
    return torch.einsum("bip,bij,bjq->pq", jacobian, hessian, jacobian) / len(batch)
