"""Compile every kernel for GPUs that are not here, and print what the generated code does, as JSON. No interpreter."""

import json
import os
import re
import subprocess
import sys
import tempfile

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hf_sharp_unlearn.kernels import launch, triton_kernels

TYPES = {
    **dict.fromkeys(("pointers", "numel", "offset_of"), "*i64"),
    **dict.fromkeys(("etas", "rules", "grad_scale", "found_inf"), "*fp32"),
    **dict.fromkeys(("partials", "sums"), "*fp64"),
    **dict.fromkeys(("scale", "lam_r", "lam_f", "factor"), "fp32"),
    **dict.fromkeys(("tensors", "first", "total"), "i32"),
    "tensor_of": "*i32",
}
MIN_MAX = {"R0": False, "R1": True, "F0": True, "F1": True, "MASK": True, "SHARP": True, "OVERLAP": False}
PLAIN = {**dict.fromkeys(MIN_MAX, False), "R0": True}
SGD = {"ST": tl.float32, "ADAM": False, "NORM": True, "MOMENTUM": True, "DECAY": True, "SCALED": False, "SKIPS": False}
ADAMW = {**SGD, "ADAM": True, "MOMENTUM": False, "DECAY": False, "SCALED": True, "SKIPS": True}

# name: (kernel, flags, weight-like lists read, state lists read, weight-like written, state written); no masks
CASES = {
    "norms": ("norms", {"LISTS": 2, "ADAPT": True, "INSIDE_0": 2, "INSIDE_1": 1}, 3, 0, 0, 0),
    "displace": ("displace", {"ADAPT": True, "INSIDE": 1}, 2, 0, 1, 0),
    "copy": ("copy", {}, 1, 0, 1, 0),
    "compose": ("compose", {"ADD": False, **MIN_MAX}, 3, 0, 1, 0),
    "compose_add": ("compose", {"ADD": True, **MIN_MAX, "R0": True, "SHARP": False, "OVERLAP": True}, 5, 0, 1, 0),
    "sgd": ("update", {**SGD, **PLAIN}, 2, 1, 1, 1),
    "sgd_min_max": ("update", {**SGD, **MIN_MAX}, 4, 1, 1, 1),
    "adamw": ("update", {**ADAMW, **PLAIN}, 2, 2, 1, 2),
    "adamw_min_max": ("update", {**ADAMW, **MIN_MAX}, 4, 2, 1, 2),
}
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
CUOBJDUMP = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")


def compiled(kernel, flags, dtype, target, vector):
    function = getattr(triton_kernels, kernel)
    constants = {
        "DT": tl.int32 if kernel == "copy" else dtype,
        "CHUNK": launch.CHUNK,
        "BLOCK": launch.block_for(target.backend, flags.get("ADAM", False)),
        "VEC": vector,
        **flags,
    }
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    signature = {name: "constexpr" if name in constants else TYPES[name] for name in function.arg_names}
    source = ASTSource(fn=function, signature=signature, constexprs=constants)
    options = {"num_warps": launch.WARPS, "enable_fp_fusion": False}
    return triton.compile(source, target=target, options=options)


def facts(code, target):
    """128-bit loads and stores, other accesses of tensor data, spills, fused multiply-adds of float32."""
    if target.backend == "cuda":
        ptx = code.asm["ptx"]
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(code.asm["cubin"])
            file.flush()
            usage = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True)
        stack, local = (int(re.search(rf"{word}:(\d+)", usage.stdout).group(1)) for word in ("STACK", "LOCAL"))
        return {
            "loads": len(re.findall(r"ld\.global[.\w:]*\.v4\.b32", ptx)),
            "stores": len(re.findall(r"st\.global[.\w:]*\.v4\.b32", ptx)),
            "spills": stack + local,
            "fused": len(re.findall(r"\bfma\.rn[.\w]*\.f32", ptx)),
        }
    text = code.asm["amdgcn"]
    return {
        "loads": len(re.findall(r"(?:global|buffer)_load_dwordx4", text)),
        "stores": len(re.findall(r"(?:global|buffer)_store_dwordx4", text)),
        "spills": sum(int(n) for n in re.findall(r"\.[sv]gpr_spill_count:\s*(\d+)", text)),
        "fused": len(re.findall(r"v_(?:pk_)?fmac?_f32", text)),
    }


def wide(lists, states, dtype, flags, target):
    """16-byte accesses that a block needs: 0 for lists of which a thread takes fewer than 16 bytes."""
    a_thread = launch.block_for(target.backend, flags.get("ADAM", False)) // (launch.WARPS * target.warp_size)
    size = dtype.primitive_bitwidth // 8
    return (lists * size * a_thread // 16 if size * a_thread >= 16 else 0) + states * 4 * a_thread // 16


def main() -> None:
    rows = []
    for where, target in TARGETS.items():
        for width, dtype in (("fp32", tl.float32), ("bf16", tl.bfloat16)):
            for name, (kernel, flags, read, read_state, written, written_state) in CASES.items():
                moved = tl.int32 if kernel == "copy" else dtype
                needed = {
                    "read": wide(read, read_state, moved, flags, target),
                    "written": wide(written, written_state, moved, flags, target),
                }
                for vector in (True, False):
                    found = facts(compiled(kernel, flags, dtype, target, vector), target)
                    rows.append(
                        {"target": where, "dtype": width, "case": name, "vector": vector, **needed, **found}
                    )  # fmt: skip
        found = facts(compiled("finish", {"SPAN": launch.SPAN}, tl.float64, target, False), target)
        rows.append({"target": where, "dtype": "fp64", "case": "finish", "vector": None, **found})
    json.dump(rows, sys.stdout)


if __name__ == "__main__":
    main()
