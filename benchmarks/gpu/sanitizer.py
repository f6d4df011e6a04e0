"""Does every kernel stay within its tensors, and do no two of its threads meet? compute-sanitizer tells."""

import os
import shutil
import subprocess
import sys

from hf_sharp_unlearn.benchmarks.gpu import each_kernel
from hf_sharp_unlearn.benchmarks.gpu.record import Part, Skipped, run_part


def main() -> None:
    run_part("sanitizer", __doc__, run)


def run(part: Part) -> None:
    part.attempt("each kernel once", lambda: {"status": "passed" if each_kernel.run(part.device) else "failed"})
    for tool in ("memcheck", "racecheck"):
        part.attempt(f"compute-sanitizer {tool}", lambda t=tool: sanitized(part, t), needs=10)


def sanitized(part: Part, tool: str) -> dict:
    """Every kernel once under compute-sanitizer, every tensor in an allocation of its own."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not part.gpu or not os.access(program, os.X_OK):
        raise Skipped("there is no compute-sanitizer" if part.gpu else "it is a tool for a GPU")
    command = [program, "--tool", tool, "--error-exitcode", "9", sys.executable, "-m", each_kernel.__name__, "cuda"]
    around = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=around,
                              timeout=min(60, max(part.left() - 2, 5)))  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise Skipped(f"it did not end within {error.timeout:.0f} s") from None
    said = (done.stdout + done.stderr).splitlines()[-20:]
    if done.returncode == 9:
        return {"status": "failed", "reason": "it found errors", "said": said}
    if done.returncode or not any("ERROR SUMMARY: 0 errors" in line or "0 hazards" in line for line in said):
        raise Skipped(f"it did not run (exit status {done.returncode}): " + " | ".join(said)[-800:])
    return {"status": "passed", "said": said[-1]}


if __name__ == "__main__":
    main()
