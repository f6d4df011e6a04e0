"""Is every result right? Each kernel bit for bit against `reference` on the same device, and against its formula in
float64; tensors of more than 2^31 elements; side streams; NaN behind a mask; dtypes that must be refused."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from hf_sharp_unlearn.benchmarks.gpu.cases import SCALE, Inputs, Operation, layouts, operations
from hf_sharp_unlearn.benchmarks.gpu.record import Part, Skipped, run_part
from hf_sharp_unlearn.kernels import SGD, AdamW, Direction, load, reference

# ||out - formula|| / ||formula|| over a list; a list is rounded once. Sums of squares are in float64.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3}
SUMS = 1e-6


def main() -> None:
    run_part("exact", __doc__, run)


def run(part: Part) -> None:
    triton = load("triton")
    part.attempt("float16 and float64 are refused", lambda: refusals(triton, part.device))
    part.attempt("NaN behind a mask", lambda: hidden_nan(triton, part.device))
    part.attempt("side streams", lambda: side_streams(triton, part))
    seed = 0
    for dtype in (torch.float32, torch.bfloat16):
        for layout, specs in layouts(part.quick).items():
            # In the interpreter every one once, and some of them on every list.
            every = not part.quick or (layout == "sizes" and dtype == torch.float32)
            for operation in operations()[:: 1 if every else 3]:
                seed += 1  # fresh inputs for each case
                part.attempt(
                    f"{operation.name}, {str(dtype)[6:]}, {layout}",
                    lambda o=operation, s=specs, d=dtype, n=seed: compare(triton, o, Inputs(s, d, part.device, n)),
                    needs=3,
                )
        if dtype == torch.float32:
            for extra in (16, 17):
                bits = 31 if part.gpu else 15  # where offsets overflow; in the interpreter only to see that it runs
                title = f"2^{bits} + {extra} elements"
                part.attempt(title, lambda b=bits, n=extra: large(triton, part, 1 << b, n), needs=12)
                part.free()


@torch.no_grad()
def compare(triton, operation: Operation, inputs: Inputs) -> dict:
    """One operation on one list of tensors: the bits, the formula, and what else was written."""
    found, sums = operation.run(triton, inputs)
    spoilt = inputs.untouched()
    expected, other_sums = operation.run(reference, inputs)
    formula, right_sums = operation.formula(inputs)
    bits = all(torch.equal(a, b) for name in found for a, b in zip(found[name], expected[name], strict=True))
    ulp = max((max_ulp(a, b) for name in found for a, b in zip(found[name], expected[name], strict=True)), default=0)
    off = highest(distance(found[name], formula[name]) / TOLERANCE[found[name][0].dtype] for name in found)
    if sums is not None and right_sums is None:  # of what was stored
        right_sums = torch.stack([x.double().square().sum() for x in found["d"]]).sum()
    off_sums = 0.0 if sums is None else relative(sums, right_sums)
    off_reference = 0.0 if sums is None else relative(sums, other_sums)
    wrong = [spoilt] if spoilt else []
    if not bits and (operation.exact or not near(found, expected)):
        wrong.append("it is not what `reference` computes")
    if not off < 1:
        wrong.append("it is not its formula")
    if not highest((off_sums, off_reference)) < SUMS:
        wrong.append("the sum of squares is off")
    values = {"bits": "equal" if bits else "differ", "max_ulp": ulp, "off_in_tolerances": off, "off_sums": off_sums}
    return {"status": "failed" if wrong else "passed", **({"reason": "; ".join(wrong)} if wrong else {}), **values}


def near(found: dict, expected: dict) -> bool:
    """AdamW: torch's square root and quotient may be rounded otherwise."""
    return all(
        torch.allclose(a.float(), b.float(), rtol=2**-7 if a.dtype == torch.bfloat16 else 1e-6, atol=1e-7)
        for name in found
        for a, b in zip(found[name], expected[name], strict=True)
    )


def max_ulp(a: Tensor, b: Tensor) -> int:
    """By how many representable numbers two tensors differ at most; the two zeros are one number."""
    kind, low = (torch.int16, -(1 << 15)) if a.dtype == torch.bfloat16 else (torch.int32, -(1 << 31))
    x, y = (value.contiguous().view(kind).long() for value in (a, b))
    x, y = (torch.where(bits < 0, low - bits, bits) for bits in (x, y))
    return int((x - y).abs().max()) if a.numel() else 0


def distance(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    off = torch.stack([(a.double() - b).square().sum() for a, b in zip(found, expected, strict=True)]).sum()
    return float((off / torch.stack([b.double().square().sum() for b in expected]).sum()).sqrt())


def highest(values: Iterable[float]) -> float:
    """The largest, or nan if there is one; 0 of none."""
    return max(values, key=lambda value: (value != value, value), default=0.0)


def relative(found: Tensor, expected: Tensor) -> float:
    return float(((found.double() - expected.double()).abs() / expected.double().abs()).max())


def refusals(triton, device: torch.device) -> dict:
    """It computes on float32 and bfloat16 only: another dtype must not be read as one of these."""
    taken = []
    for dtype in (torch.float16, torch.float64):
        w, g = ([torch.ones(16, dtype=dtype, device=device)] for _ in range(2))
        out, states = [torch.empty_like(w[0])], [[torch.zeros(16, device=device)] for _ in range(2)]
        for name, call in {
            "norms": lambda w=w, g=g: triton.norms(w, [g], [None]),
            "displace": lambda w=w, g=g, out=out: triton.displace(w, g, out, [None], 1.0),
            "compose": lambda g=g, out=out: triton.compose(Direction(r0=g), out),
            "sgd": lambda w=w, g=g: triton.sgd(w, Direction(r0=g), None, [SGD(0.1)]),
            "adamw": lambda w=w, g=g, states=states: triton.adamw(w, Direction(r0=g), *states, [AdamW(0.1)]),
        }.items():
            try:
                call()
                taken.append(f"{name} {dtype}")
            except ValueError:
                pass
    return {"status": "failed", "taken": ", ".join(taken)} if taken else {"status": "passed"}


def hidden_nan(triton, device: torch.device) -> dict:
    """NaN where the mask says that an element does not take part reaches no result."""
    wrong, nan = [], float("nan")
    for size in (2, 32, 1025, 16392):
        mask = torch.arange(size, device=device) % 2 == 0
        half = size - size // 2
        w = [torch.ones(size, device=device)]
        m, g = triton.pack([mask], w), [torch.where(mask, nan, 2.0)]
        out, v = [torch.empty_like(w[0])], [torch.zeros_like(w[0])]
        length = triton.norms(w, [g], [0.5], m, [False]).item()
        triton.displace(w, g, out, [0.5], 1.0, m, False)
        fine = length == 9.0 * (size // 2) and torch.equal(out[0], torch.where(mask, 1.0, 1 + 1.5**2 * 2.0))
        f, r = [torch.where(mask, 1.0, nan)], [torch.where(mask, nan, 3.0)]
        d, squares = triton.compose(Direction(r, r, f, f, m), [torch.empty_like(w[0])])
        fine &= torch.equal(d[0], torch.where(mask, 1.0, 3.0)) and squares.item() == half + 9 * (size // 2)
        triton.sgd(w, Direction(r, r, f, f, m), v, [SGD(1.0, 0.9)])
        fine &= torch.equal(v[0], d[0]) and torch.equal(w[0], 1 - d[0])
        if not fine:
            wrong.append(size)
    return {"status": "failed", "sizes": str(wrong)} if wrong else {"status": "passed"}


def side_streams(triton, part: Part) -> dict:
    """Tables and chunk lists are uploaded on the stream that uses them. Other sizes, then the first ones again."""
    if not part.gpu:
        raise Skipped("a CPU has no streams")
    streams = [torch.cuda.Stream() for _ in range(3)]
    wrong = []
    for turn, sizes in enumerate(((5, 1024, 40000), (7, 4096, 70001), (5, 1024, 40000))):
        w, g = (
            [torch.randn(n, device=part.device) for n in sizes] for _ in range(2)
        )  # fmt: skip
        results = []
        for stream in streams:
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                outs = [torch.empty_like(x) for x in w]
                triton.displace(w, g, outs, [0.1] * 3, 0.5)
                results.append((outs, triton.norms(w, [g], [0.1] * 3)))
        for stream in streams:
            torch.cuda.current_stream().wait_stream(stream)
        right = [torch.empty_like(x) for x in w]
        reference.displace(w, g, right, [0.1] * 3, 0.5)
        total = reference.norms(w, [g], [0.1] * 3)
        for place, (outs, sums) in enumerate(results):
            if not all(map(torch.equal, outs, right)) or not relative(sums, total) < SUMS:
                wrong.append(f"turn {turn} stream {place}")
    return {"status": "failed", "where": ", ".join(wrong)} if wrong else {"status": "passed"}


@torch.no_grad()
def large(triton, part: Part, seam: int, extra: int) -> dict:
    """Offsets beyond 32 bits: seam is 2^31. 16 elements more are walked 16 bytes at a time, 17 more one by one."""
    count, span = seam + extra, min(1 << 20, seam // 8)
    if part.gpu:
        free, _ = torch.cuda.mem_get_info()
        if free < 3 * 4 * count + (2 << 30):
            raise Skipped(f"{3 * 4 * count / 2**30:.0f} GiB are needed, {free / 2**30:.0f} are free")
    w, g, out = (torch.empty(count, device=part.device) for _ in range(3))
    for tensor in (w, g):
        tensor.normal_()
    out.fill_(float("nan"))
    triton.displace([w], [g], [out], [0.1], SCALE)
    sums = triton.norms([w], [[g]], [0.1])
    distances = []
    for low in (0, seam - span // 2, count - span, *torch.randint(count - span, (20,)).tolist()):
        a, b, c = (tensor[low : low + span].double() for tensor in (w, g, out))
        distances.append(distance([c], [a + SCALE * (a.abs() + 0.1) ** 2 * b]))
    total, written = torch.zeros((), dtype=torch.float64, device=part.device), True
    for low in range(0, count, 1 << 26):
        a, b, c = (tensor[low : low + (1 << 26)] for tensor in (w, g, out))
        total += ((a.double().abs() + 0.1) * b.double()).square().sum()
        written &= bool(c.isfinite().all())
    worst, off = highest(distances), relative(sums, total.view(1))
    good = worst < TOLERANCE[torch.float32] and off < SUMS and written
    return {"status": "passed" if good else "failed", "off": worst, "off_sums": off, "all_written": written}


if __name__ == "__main__":
    main()
