"""Every kernel once, on three tensors: what compute-sanitizer looks at."""

import sys

import torch

from hf_sharp_unlearn.kernels import SGD, AdamW, Direction, load


def run(device: torch.device) -> bool:
    """True if weights came back from a perturbation bit for bit, and all numbers are finite."""
    triton = load("triton")
    sizes, etas = (1, 1025, 40_000), [None, 0.0, 0.1]
    w, r1, f0, f1, backups = ([torch.randn(n, device=device) for n in sizes] for _ in range(5))
    start, masks = [x.clone() for x in w], triton.pack([x > 0 for x in f1], w)
    sums = triton.norms(w, [r1, f0], etas, masks, [False, True])
    triton.displace(w, r1, backups, etas, 0.1, masks, False)
    triton.perturb(w, f0, backups, etas, 0.1, saved := [], masks, True)
    triton.restore(w, backups, saved)
    same = all(map(torch.equal, w, start))
    _, squares = triton.compose(Direction(None, r1, f0, f1, masks))
    states = [[torch.zeros_like(x) for x in w] for _ in range(3)]
    triton.sgd(w, Direction(r0=r1), states[0], [SGD(0.1, 0.9)] * 3)
    triton.adamw(w, Direction(None, r1, f0, f1, masks), *states[1:], [AdamW(0.01)] * 3)
    numbers = [sums.sum(), squares, *(x.double().sum() for x in w)]
    if not same or not all(number.isfinite().item() for number in numbers):
        raise AssertionError("weights that did not come back, or numbers that are not finite")
    return True


if __name__ == "__main__":
    run(torch.device(sys.argv[1]))
