"""The suite's own tests of the kernels and of what stands on them, on this device."""

import importlib.util
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from hf_sharp_unlearn.benchmarks.gpu.record import Part, Skipped, run_part

ROOT = Path(__file__).resolve().parents[2]  # of the checkout: the folder may be reached through a link
# Those that look at the device. (test_codegen and test_hub_kernel need none.)
FILES = ("tests/kernels/test_gpu.py", "tests/kernels/test_kernels.py", "tests/kernels/test_kernel_checks.py",
         "tests/kernels/test_table.py", "tests/kernels/test_staging.py", "tests/step/test_optim.py",
         "tests/step/test_optim_staging.py")  # fmt: skip


def main() -> None:
    run_part("tests", __doc__, run)


def run(part: Part) -> None:
    part.attempt("pytest", lambda: tested(part))


def tested(part: Part) -> dict:
    """A row a file, and one for each test that fails."""
    if not (ROOT / FILES[0]).is_file():
        raise Skipped("the tests are part of a checkout only")
    if importlib.util.find_spec("pytest") is None:
        raise Skipped("pytest is not installed")
    files = ["tests/kernels/test_staging.py"] if part.quick else FILES
    with tempfile.TemporaryDirectory() as folder:
        results = os.path.join(folder, "results.xml")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--maxfail", "30", "--tb", "short"]
        command += ["-W", "default", f"--junitxml={results}", *files]  # a deprecation elsewhere is not what is tested
        if importlib.util.find_spec("xdist") and not part.quick and (os.cpu_count() or 1) >= 8:
            command += ["-n", "6"]
        around = os.environ | ({"GPU_TESTS": "1"} if part.gpu else {})
        try:
            done = subprocess.run(command, cwd=ROOT, env=around, timeout=max(part.left() - 3, 10))
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(
                f"the tests did not end within {error.timeout:.0f} s; {part.name}.log says more"
            ) from None
        cases = list(ElementTree.parse(results).iter("testcase")) if os.path.exists(results) else []
    counts: dict[str, dict] = {}
    for case in cases:
        what = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        kind = "passed" if what is None else "skipped" if what.tag == "skipped" else "failed"
        file = case.get("classname", "").split(".Test")[0] or case.get("name", "")
        count = counts.setdefault(file, {"passed": 0, "failed": 0, "skipped": 0})
        count[kind] += 1
        if kind == "failed":
            lines = (what.text or what.get("message") or "").splitlines()[-12:]
            part.add(f"{file} {case.get('name')}", "failed", reason=what.get("message", "")[:500], where=lines)
    for file, count in counts.items():
        part.add(file, "measured", **{f"tests_{kind}": number for kind, number in count.items()})
    passed = sum(count["passed"] for count in counts.values())
    return {"status": "passed" if done.returncode == 0 and passed else "failed", "exit_status": done.returncode,
            "tests_passed": passed}  # fmt: skip


if __name__ == "__main__":
    main()
