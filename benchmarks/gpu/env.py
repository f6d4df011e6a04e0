"""What runs here, how fast it copies, and whether Triton gets to its first launch."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
import warnings

import torch

from hf_sharp_unlearn.benchmarks.gpu.record import Part, run_part
from hf_sharp_unlearn.benchmarks.parts.clocks import copy_bandwidth
from hf_sharp_unlearn.kernels import backend_for

PACKAGES = ("torch", "triton", "transformers", "accelerate", "timm", "peft", "pytest", "pytest-xdist", "hypothesis",
            "datasets", "pot")  # fmt: skip
FACTS = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,clocks.sm,power.limit,temperature.gpu"


def main() -> None:
    run_part("env", __doc__, run)


def run(part: Part) -> None:
    part.attempt("versions and device", lambda: about(part))
    part.attempt("nvidia-smi", lambda: {"line": nvidia_smi()})
    part.attempt("compiler", compiler)
    part.attempt("backend and first launch", lambda: first_launch(part))
    mebibytes, rounds = (1, 5) if part.quick else (2048, 20)
    part.attempt("copy bandwidth", lambda: {"gb_per_s": copy_bandwidth(part.device, rounds, mebibytes),
                                            "mib": mebibytes, "rounds": rounds})  # fmt: skip


def about(part: Part) -> dict:
    found = {"device": f"CPU, {platform.machine()}", "python": platform.python_version(), "cores": os.cpu_count()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    if part.gpu:
        card = torch.cuda.get_device_properties(part.device)
        found |= {
            "device": card.name,
            "capability": f"{card.major}.{card.minor}",
            "multiprocessors": card.multi_processor_count,
            "l2_mib": round(getattr(card, "L2_cache_size", 0) / 2**20, 1),
            "memory_gib": round(card.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def nvidia_smi() -> str:
    if shutil.which("nvidia-smi") is None:
        return "there is no nvidia-smi"
    done = subprocess.run(["nvidia-smi", f"--query-gpu={FACTS}", "--format=csv,noheader"],
                          capture_output=True, text=True, timeout=20)  # fmt: skip
    return (done.stdout or done.stderr).strip()


def compiler() -> dict:
    """Triton builds its launcher with a C compiler and Python's headers."""
    header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
    found = next(filter(None, map(shutil.which, (os.environ.get("CC") or "gcc", "gcc", "clang", "cc"))), "none")
    return {"compiler": found, "python_h": os.path.exists(header), "executable": sys.executable}


def first_launch(part: Part) -> dict:
    """`auto` must take Triton: else every other part would measure something else."""
    name = "auto" if part.gpu else "triton"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        start = time.perf_counter()
        backend = backend_for(part.device, [], name)  # on a GPU this makes a trial launch
        first = time.perf_counter() - start
    ones = [torch.ones(64, device=part.device)]
    start = time.perf_counter()
    total = backend.norms(ones, [ones], [None]).item()
    return {
        "status": "passed" if backend.__name__.endswith("multi_tensor") and total == 64 else "failed",
        "backend": backend.__name__.rsplit(".", 1)[-1],
        "first_s": round(first, 2),
        "next_us": round(1e6 * (time.perf_counter() - start)),
        "warnings": "; ".join(str(one.message) for one in said if "kernels" in str(one.message)) or "none",
    }


if __name__ == "__main__":
    main()
