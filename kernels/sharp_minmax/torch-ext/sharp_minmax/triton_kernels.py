"""Device code: every program walks one chunk of one tensor (see `table`), BLOCK elements at a time.

Compile-time flags: VEC (16-byte accesses; the host promises alignment), DT and ST (dtypes of weights and of state),
INSIDE_* (0: every element, 1: the mask's part, 2: the rest), which lists exist. Arithmetic is float32, in the order of
`reference`, without fused multiply-adds (the host compiles with enable_fp_fusion=False); sums of squares are float64.

Where a block is a whole chunk (in the interpreter) loops have one turn, known beforehand: the interpreter of Triton
3.6 cannot loop to a number that the kernel has loaded.
"""

import triton
import triton.language as tl


@triton.jit
def _chunk(numel, tensor_of, offset_of, CHUNK: tl.constexpr, BLOCK: tl.constexpr, VEC: tl.constexpr):
    """(tensor, offset, elements) of this program's chunk."""
    tensor = tl.load(tensor_of + tl.program_id(0))
    offset = tl.multiple_of(tl.load(offset_of + tl.program_id(0)), BLOCK)
    size = tl.minimum(tl.load(numel + tensor) - offset, CHUNK).to(tl.int32)
    if VEC:
        size = tl.multiple_of(size, 8)
    return tensor, offset, size


@triton.jit
def _at(pointers, row: tl.constexpr, tensors, tensor, offset, DT: tl.constexpr, VEC: tl.constexpr):
    """Pointer to the chunk in one role's tensor. The hint must be on the pointer, after the cast."""
    pointer = tl.load(pointers + row * tensors + tensor).to(tl.pointer_type(DT))
    if VEC:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + offset


@triton.jit
def _narrow(x, DT: tl.constexpr):
    """float32 to DT, to nearest even. bfloat16 by hand: the interpreter's own conversion truncates."""
    if DT == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(x != x, 0x7FC0, rounded)
        return rounded.to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(DT)


@triton.jit
def _select(x, mask, o, live, INSIDE: tl.constexpr):
    if INSIDE == 0:
        return x
    else:
        part = tl.load(mask + o, mask=live, other=0) != 0
        if INSIDE == 1:
            return tl.where(part, x, 0.0)
        else:
            return tl.where(part, 0.0, x)


@triton.jit(do_not_specialize=["tensors", "first", "total"])
def norms(pointers, numel, tensor_of, offset_of, etas, partials, tensors, first, total,
          DT: tl.constexpr, LISTS: tl.constexpr, ADAPT: tl.constexpr, INSIDE_0: tl.constexpr, INSIDE_1: tl.constexpr,
          CHUNK: tl.constexpr, BLOCK: tl.constexpr, VEC: tl.constexpr):  # fmt: skip
    """One partial sum of (T g)^2 per chunk and list. Roles: weights, g_0, g_1, mask."""
    tensor, offset, size = _chunk(numel, tensor_of, offset_of, CHUNK, BLOCK, VEC)
    w = _at(pointers, 0, tensors, tensor, offset, DT, VEC)
    a = _at(pointers, 1, tensors, tensor, offset, DT, VEC)
    b = _at(pointers, 2, tensors, tensor, offset, DT, VEC)
    mask = _at(pointers, 3, tensors, tensor, offset, tl.uint8, VEC)
    eta = tl.load(etas + tensor)
    sum_a = tl.zeros((BLOCK,), tl.float64)
    sum_b = tl.zeros((BLOCK,), tl.float64)
    for low in range(0, CHUNK if BLOCK == CHUNK else size, BLOCK):
        o = low + tl.arange(0, BLOCK)
        live = o < size
        x = _select(tl.load(a + o, mask=live, other=0.0).to(tl.float32), mask, o, live, INSIDE_0)
        if ADAPT:
            # a negative eta stands for T = 1
            scale = tl.where(eta < 0, 1.0, tl.abs(tl.load(w + o, mask=live, other=0.0).to(tl.float32)) + eta)
            x = scale * x
        sum_a += x.to(tl.float64) * x.to(tl.float64)
        if LISTS == 2:
            y = _select(tl.load(b + o, mask=live, other=0.0).to(tl.float32), mask, o, live, INSIDE_1)
            if ADAPT:
                y = scale * y
            sum_b += y.to(tl.float64) * y.to(tl.float64)
    place = partials + first + tl.program_id(0)
    tl.store(place, tl.sum(sum_a, 0))
    if LISTS == 2:
        tl.store(place + total, tl.sum(sum_b, 0))


@triton.jit(do_not_specialize=["total"])
def finish(partials, sums, total, SPAN: tl.constexpr, BLOCK: tl.constexpr):
    """Program (k, j) adds up SPAN partial sums of list k, from the j-th SPAN on, always in the same order."""
    k, j = tl.program_id(0), tl.program_id(1)
    accumulated = tl.zeros((BLOCK,), tl.float64)
    for low in range(0, SPAN, BLOCK):
        o = j * SPAN + low + tl.arange(0, BLOCK)
        accumulated += tl.load(partials + k * total + o, mask=o < total, other=0.0)
    tl.store(sums + k * tl.num_programs(1) + j, tl.sum(accumulated, 0))


@triton.jit(do_not_specialize=["tensors"])
def displace(pointers, numel, tensor_of, offset_of, etas, scale, tensors,
             DT: tl.constexpr, ADAPT: tl.constexpr, INSIDE: tl.constexpr,
             CHUNK: tl.constexpr, BLOCK: tl.constexpr, VEC: tl.constexpr):  # fmt: skip
    """out = w + scale T^2 g. Roles: weights, g, out, mask."""
    tensor, offset, size = _chunk(numel, tensor_of, offset_of, CHUNK, BLOCK, VEC)
    w = _at(pointers, 0, tensors, tensor, offset, DT, VEC)
    g = _at(pointers, 1, tensors, tensor, offset, DT, VEC)
    out = _at(pointers, 2, tensors, tensor, offset, DT, VEC)
    mask = _at(pointers, 3, tensors, tensor, offset, tl.uint8, VEC)
    eta = tl.load(etas + tensor)
    for low in range(0, CHUNK if BLOCK == CHUNK else size, BLOCK):
        o = low + tl.arange(0, BLOCK)
        live = o < size
        x = tl.load(w + o, mask=live, other=0.0).to(tl.float32)
        step = _select(tl.load(g + o, mask=live, other=0.0).to(tl.float32), mask, o, live, INSIDE)
        if ADAPT:
            transform = tl.abs(x) + eta
            step = tl.where(eta < 0, step, transform * transform * step)
        tl.store(out + o, _narrow(x + step * scale, DT), mask=live)


@triton.jit(do_not_specialize=["tensors"])
def copy(pointers, numel, tensor_of, offset_of, tensors,
         DT: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, VEC: tl.constexpr):  # fmt: skip
    """out = source, bit for bit (DT: an integer type of the elements' size). Roles: source, out."""
    tensor, offset, size = _chunk(numel, tensor_of, offset_of, CHUNK, BLOCK, VEC)
    source = _at(pointers, 0, tensors, tensor, offset, DT, VEC)
    out = _at(pointers, 1, tensors, tensor, offset, DT, VEC)
    for low in range(0, CHUNK if BLOCK == CHUNK else size, BLOCK):
        o = low + tl.arange(0, BLOCK)
        tl.store(out + o, tl.load(source + o, mask=o < size), mask=o < size)


@triton.jit
def _mix(g0, g1, o, live, lam, HAS_0: tl.constexpr, HAS_1: tl.constexpr, ASCEND: tl.constexpr, SHARP: tl.constexpr):
    """g0 + lam (g1 - g0), or g0 - lam (g1 - g0) with ASCEND (SHARP: lam is 1); the gradient itself if only one is."""
    if HAS_0 and HAS_1:
        a = tl.load(g0 + o, mask=live, other=0.0).to(tl.float32)
        b = tl.load(g1 + o, mask=live, other=0.0).to(tl.float32)
        if ASCEND and SHARP:
            return 2.0 * a - b
        elif ASCEND:
            return a + (b - a) * (-lam)
        else:
            return a + (b - a) * lam
    elif HAS_0:
        return tl.load(g0 + o, mask=live, other=0.0).to(tl.float32)
    else:
        return tl.load(g1 + o, mask=live, other=0.0).to(tl.float32)


@triton.jit
def _direction(r0, r1, f0, f1, mask, o, live, lam_r, lam_f,
               R0: tl.constexpr, R1: tl.constexpr, F0: tl.constexpr, F1: tl.constexpr,
               MASK: tl.constexpr, SHARP: tl.constexpr, OVERLAP: tl.constexpr):  # fmt: skip
    if not (F0 or F1):
        d = _mix(r0, r1, o, live, lam_r, R0, R1, False, False)
        if MASK and not OVERLAP:
            d = tl.where(tl.load(mask + o, mask=live, other=0) != 0, 0.0, d)
    elif not (R0 or R1):
        part = tl.load(mask + o, mask=live, other=0) != 0
        d = tl.where(part, _mix(f0, f1, o, live, lam_f, F0, F1, True, SHARP), 0.0)
    else:
        part = tl.load(mask + o, mask=live, other=0) != 0
        r = _mix(r0, r1, o, live, lam_r, R0, R1, False, False)
        f = _mix(f0, f1, o, live, lam_f, F0, F1, True, SHARP)
        if OVERLAP:
            d = r + tl.where(part, f, 0.0)
        else:
            d = tl.where(part, f, r)
    return d


@triton.jit(do_not_specialize=["tensors", "first"])
def compose(pointers, numel, tensor_of, offset_of, partials, lam_r, lam_f, tensors, first,
            DT: tl.constexpr, R0: tl.constexpr, R1: tl.constexpr, F0: tl.constexpr, F1: tl.constexpr,
            MASK: tl.constexpr, SHARP: tl.constexpr, OVERLAP: tl.constexpr, ADD: tl.constexpr,
            CHUNK: tl.constexpr, BLOCK: tl.constexpr, VEC: tl.constexpr):  # fmt: skip
    """out = d, or out + d with ADD, and one partial sum of its squares per chunk. Roles: out, r0, r1, f0, f1, mask."""
    tensor, offset, size = _chunk(numel, tensor_of, offset_of, CHUNK, BLOCK, VEC)
    out = _at(pointers, 0, tensors, tensor, offset, DT, VEC)
    r0 = _at(pointers, 1, tensors, tensor, offset, DT, VEC)
    r1 = _at(pointers, 2, tensors, tensor, offset, DT, VEC)
    f0 = _at(pointers, 3, tensors, tensor, offset, DT, VEC)
    f1 = _at(pointers, 4, tensors, tensor, offset, DT, VEC)
    mask = _at(pointers, 5, tensors, tensor, offset, tl.uint8, VEC)
    squares = tl.zeros((BLOCK,), tl.float64)
    for low in range(0, CHUNK if BLOCK == CHUNK else size, BLOCK):
        o = low + tl.arange(0, BLOCK)
        live = o < size
        d = _direction(r0, r1, f0, f1, mask, o, live, lam_r, lam_f, R0, R1, F0, F1, MASK, SHARP, OVERLAP)
        if ADD:
            d = tl.load(out + o, mask=live, other=0.0).to(tl.float32) + d
        stored = _narrow(d, DT)
        tl.store(out + o, stored, mask=live)
        d = stored.to(tl.float32)  # 0 where not live, as everything that it is made of
        squares += d.to(tl.float64) * d.to(tl.float64)
    tl.store(partials + first + tl.program_id(0), tl.sum(squares, 0))


@triton.jit(do_not_specialize=["tensors", "first"])
def update(pointers, numel, tensor_of, offset_of, rules, partials, grad_scale, found_inf, lam_r, lam_f, factor,
           tensors, first,
           DT: tl.constexpr, ST: tl.constexpr,
           R0: tl.constexpr, R1: tl.constexpr, F0: tl.constexpr, F1: tl.constexpr,
           MASK: tl.constexpr, SHARP: tl.constexpr, OVERLAP: tl.constexpr,
           ADAM: tl.constexpr, NORM: tl.constexpr, MOMENTUM: tl.constexpr, DECAY: tl.constexpr, SCALED: tl.constexpr,
           SKIPS: tl.constexpr,
           CHUNK: tl.constexpr, BLOCK: tl.constexpr, VEC: tl.constexpr):  # fmt: skip
    """Compose d and step along it. Roles: weights, source of w, r0, r1, f0, f1, mask, first state, second state.

    rules: float32 (tensors, 8), see `multi_tensor`. SCALED: d is divided by *grad_scale; SKIPS: *found_inf != 0 writes
    the source and the states back as they are.
    """
    tensor, offset, size = _chunk(numel, tensor_of, offset_of, CHUNK, BLOCK, VEC)
    w = _at(pointers, 0, tensors, tensor, offset, DT, VEC)
    source = _at(pointers, 1, tensors, tensor, offset, DT, VEC)
    r0 = _at(pointers, 2, tensors, tensor, offset, DT, VEC)
    r1 = _at(pointers, 3, tensors, tensor, offset, DT, VEC)
    f0 = _at(pointers, 4, tensors, tensor, offset, DT, VEC)
    f1 = _at(pointers, 5, tensors, tensor, offset, DT, VEC)
    mask = _at(pointers, 6, tensors, tensor, offset, tl.uint8, VEC)
    s1 = _at(pointers, 7, tensors, tensor, offset, ST, VEC)
    s2 = _at(pointers, 8, tensors, tensor, offset, ST, VEC)
    rule = rules + tensor * 8
    c0 = tl.load(rule)
    c1 = tl.load(rule + 1)
    c2 = tl.load(rule + 2)
    c3 = tl.load(rule + 3)
    c4 = tl.load(rule + 4)
    c5 = tl.load(rule + 5)
    c6 = tl.load(rule + 6)
    if SCALED:
        factor = factor * tl.div_rn(1.0, tl.load(grad_scale))
    if SKIPS:
        keep = tl.load(found_inf) != 0
    squares = tl.zeros((BLOCK,), tl.float64)
    for low in range(0, CHUNK if BLOCK == CHUNK else size, BLOCK):
        o = low + tl.arange(0, BLOCK)
        live = o < size
        d = _direction(r0, r1, f0, f1, mask, o, live, lam_r, lam_f, R0, R1, F0, F1, MASK, SHARP, OVERLAP)
        if NORM:
            squares += d.to(tl.float64) * d.to(tl.float64)
        d = d * factor
        x = tl.load(source + o, mask=live, other=0.0).to(tl.float32)
        if ADAM:  # c: see AdamW.factors
            m = tl.load(s1 + o, mask=live, other=0.0)
            v = tl.load(s2 + o, mask=live, other=0.0)
            new_m = m + (d - m) * c1
            new_v = v * c2 + d * c3 * d
            denominator = tl.sqrt_rn(new_v) * c4 + c5
            new = x * c0 - tl.div_rn(new_m * c6, denominator)
            if SKIPS:
                new_m = tl.where(keep, m, new_m)
                new_v = tl.where(keep, v, new_v)
            tl.store(s1 + o, new_m, mask=live)
            tl.store(s2 + o, new_v, mask=live)
        else:  # c: lr, momentum, 1 - dampening, weight decay, nesterov
            if DECAY:
                d = d + x * c3
            if MOMENTUM:
                v = tl.load(s1 + o, mask=live, other=0.0)
                new_v = v * c1 + d * c2
                if SKIPS:
                    tl.store(s1 + o, tl.where(keep, v, new_v), mask=live)
                else:
                    tl.store(s1 + o, new_v, mask=live)
                d = tl.where(c4 != 0, d + new_v * c1, new_v)
            new = x - d * c0
        if SKIPS:
            new = tl.where(keep, x, new)
        tl.store(w + o, _narrow(new, DT), mask=live)
    if NORM:
        tl.store(partials + first + tl.program_id(0), tl.sum(squares, 0))
