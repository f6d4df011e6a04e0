"""Do the kernels work on this GPU, bit for bit, and how fast are they and the steps around them?

    make gpu-check                                        in a checkout
    python benchmarks/gpu_check.py --output-dir DIR       the same; neither this package nor datasets need be installed
    python benchmarks/gpu_check.py --device cpu --quick   every part at toy size, with Triton's interpreter

env        versions, the card, copy bandwidth, the first launch
exact      every kernel bit for bit against `reference`, and against its formula in float64
race       the same results many times over, beside other work, while tables are written again
tests      the suite's own GPU tests
sweeps     time and bandwidth of every sweep, against torch's multi-tensor functions and a loop over tensors
step       whole training steps of a ResNet-50: ratios, waits, launches, how busy the GPU is; what precision does to eps
lm         whole training steps of a Llama of 1.2 B parameters, full and with LoRA
graphs     the steps of a ResNet-18 at 32 pixels, its passes compiled to CUDA graphs: same weights, how much faster
sanitizer  every kernel under compute-sanitizer, where there is one

Each part is a process of its own with a limit of its own: an error of the driver, a hang or want of memory ends that
part alone. It writes DIR/PART.json after every measurement, and DIR/PART.log; the table at the end is DIR/summary.json
too. The exit status is not 0 if a check failed, a measurement raised, or a part did not come to its end. An aim that is
missed is said to be, and fails nothing. CONTRIBUTING.md says how to read the results.
"""

import argparse
import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Nothing of this package and no torch: a part that cannot even import them is a row of the table.
ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "kernels" / "sharp_minmax" / "torch-ext" / "sharp_minmax"


class Plan(NamedTuple):
    """limit: seconds a part may take. least: with fewer left it is not begun."""

    limit: float
    least: float


PARTS = {  # in order of what is learnt from them
    "env": Plan(40, 10),
    "exact": Plan(120, 40),
    "race": Plan(30, 15),
    "tests": Plan(130, 60),
    "sweeps": Plan(75, 30),
    "step": Plan(130, 45),
    "lm": Plan(60, 30),
    "graphs": Plan(120, 60),
    "sanitizer": Plan(90, 30),
}
GRACE = 5  # seconds after its limit in which a part may end by itself
BAD = ("failed", "error")


def main(argv: list[str] | None = None) -> None:
    options = parser().parse_args(argv)
    default = ROOT / "build" / "gpu_check" if KERNELS.is_dir() else "gpu_check_output"
    folder = Path(options.output_dir or default).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    start, done = time.monotonic(), {}
    with staged() as (python_path, scratch):
        for name in PARTS:
            if name in options.parts:
                left = options.limit - (time.monotonic() - start)
                done[name] = run(name, left, options, folder, python_path, scratch)
                print(line_of(name, done[name]), flush=True)
    summary = summary_of(done, options, time.monotonic() - start)
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", "utf-8")
    print(table_of(summary, folder))
    if summary["failures"]:
        sys.exit(1)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--output-dir", help="folder of the results; default: build/gpu_check in a checkout")
    made.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: only to try the command out")
    made.add_argument("--quick", action="store_true", help="toy sizes: shows that all parts run, measures nothing")
    made.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to do (default: all)")
    made.add_argument("--limit", type=float, default=480, help="seconds for all parts together (default: 480)")
    return made


@contextlib.contextmanager
def staged() -> Iterator[tuple[str | None, str]]:
    """(what PYTHONPATH needs for the package to be importable, a folder for caches), gone with the block.

    In a checkout the kernels and the benchmarks lie beside the package, and an install maps them in. Here links do
    that, in a folder of their own: the checkout stays as it is, and is what is tested whatever is installed.
    """
    with tempfile.TemporaryDirectory(prefix="gpu_check-") as scratch:
        if not KERNELS.is_dir():  # not a checkout: this file is part of an installed package
            yield None, scratch
            return
        package = Path(scratch, "path", "hf_sharp_unlearn")
        package.mkdir(parents=True)
        for path in (ROOT / "hf_sharp_unlearn").iterdir():
            if path.name not in ("__pycache__", "kernels", "benchmarks"):
                (package / path.name).symlink_to(path)
        (package / "kernels").symlink_to(KERNELS)
        (package / "benchmarks").symlink_to(ROOT / "benchmarks")
        yield str(package.parent), scratch


def surroundings(device: str, python_path: str | None, scratch: str) -> dict[str, str]:
    """Environment variables of a part."""
    around = {
        "OMP_NUM_THREADS": "1" if device == "cpu" else "4",
        "TOKENIZERS_PARALLELISM": "false",
        "TRITON_CACHE_DIR": os.path.join(scratch, "triton"),  # one for all parts, and at first empty
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",  # else the bare folder `hf_sharp_unlearn` of the checkout would be imported
    }
    if python_path:
        theirs = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        around["PYTHONPATH"] = os.pathsep.join([python_path, *theirs])
    around.pop("TRITON_INTERPRET", None)
    if device == "cpu":
        around |= {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
    return around


def run(
    name: str, left: float, options: argparse.Namespace, folder: Path, python_path: str | None, scratch: str
) -> dict:
    """Run a part to its end or its limit. Returns its outcome, seconds and rows."""
    results, log = folder / f"{name}.json", folder / f"{name}.log"
    results.unlink(missing_ok=True)
    if left < PARTS[name].least:
        reason = f"{max(left, 0):.0f} s were left of --limit {options.limit:g}, it needs {PARTS[name].least:g}"
        return {"outcome": "skipped", "reason": reason, "seconds": 0.0, "rows": []}
    limit = min(PARTS[name].limit, left)
    command = [sys.executable, "-m", f"hf_sharp_unlearn.benchmarks.gpu.{name}", "--device", options.device]
    command += ["--output-dir", str(folder), "--limit", f"{limit:.1f}", *(["--quick"] if options.quick else [])]
    start, outcome, reason = time.monotonic(), "done", ""
    with open(log, "w") as out:
        child = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=scratch,
            env=surroundings(options.device, python_path, scratch),
            start_new_session=True,
        )
        try:
            code = child.wait(limit + GRACE)
            if code:
                outcome, reason = "crashed", f"exit status {code}: {last_line(log)}"
        except subprocess.TimeoutExpired:
            outcome, reason = "killed", f"it did not end within {limit:.0f} s: {last_line(log)}"
        finally:  # whatever it has started ends with it
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    try:
        rows = json.loads(results.read_text("utf-8"))["rows"]
    except (OSError, ValueError):
        rows = []
    if outcome == "done" and not rows:
        outcome, reason = "crashed", "it wrote no row"
    return {"outcome": outcome, "reason": reason, "seconds": round(time.monotonic() - start, 1), "rows": rows}


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else "it printed nothing"


def summary_of(done: dict[str, dict], options: argparse.Namespace, seconds: float) -> dict:
    """What the table shows, for machines; the rows themselves are in the parts' files."""
    rows = [(name, row) for name, part in done.items() for row in part["rows"]]
    failures = [{"part": name} | row for name, row in rows if row["status"] in BAD]
    failures += [
        {"part": name, "name": "the whole part", "status": part["outcome"], "reason": part["reason"]}
        for name, part in done.items()
        if part["outcome"] in ("crashed", "killed")
    ]
    around = next((row for name, row in rows if row["name"] == "versions and device"), {})
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "device": around.get("device", "unknown: the part env has not said"),
        "quick": options.quick,
        "seconds": round(seconds, 1),
        "parts": {
            name: {key: part[key] for key in ("outcome", "reason", "seconds")}
            | {"rows": dict(Counter(row["status"] for row in part["rows"]))}
            for name, part in done.items()
        },
        "left out by --parts": [name for name in PARTS if name not in done],
        "failures": failures,
        "aims": [{"part": name} | row for name, row in rows if row["status"] in ("reached", "missed")],
        "measured": [{"part": name} | row for name, row in rows if row["status"] == "measured"],
        "skipped": [{"part": name} | row for name, row in rows if row["status"] == "skipped"],
    }


def commit() -> str:
    if not KERNELS.is_dir():
        return ""
    try:
        found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


# ---- what is printed ----


def line_of(name: str, part: dict) -> str:
    counts = Counter(row["status"] for row in part["rows"])
    counted = ", ".join(f"{number} {status}" for status, number in counts.items())
    return (
        f"{name:<9} {part['outcome']:<8} {part['seconds']:6.1f} s   {counted}{part['reason'] and '   '}{part['reason']}"
    )


def table_of(summary: dict, folder: Path) -> str:
    lines = ["", f"{summary['device']}, {summary['date']}, commit {summary['commit'] or 'unknown'}"]
    for title, rows in (("measured", summary["measured"]), ("aims", summary["aims"]), ("skipped", summary["skipped"])):
        lines += ["", f"{title}:"] if rows else []
        lines += [f"  {row['part']:<9} {row['name']:<44} {values_of(row)}" for row in rows]
    lines += ["", "FAILED:" if summary["failures"] else "no check failed"]
    lines += [f"  {row['part']:<9} {row['name']:<44} {values_of(row, whole=True)}" for row in summary["failures"]]
    lines += ["", f"{'part':<9} {'outcome':<8} {'seconds':>7}   rows"]
    for name, part in summary["parts"].items():
        counted = ", ".join(f"{number} {status}" for status, number in part["rows"].items())
        lines.append(f"{name:<9} {part['outcome']:<8} {part['seconds']:7.1f}   {counted or part['reason']}")
    lines += [f"{name:<9} left out by --parts" for name in summary["left out by --parts"]]
    return "\n".join([*lines, f"{summary['seconds']:.0f} s in all; written to {folder}"])


def values_of(row: dict, whole: bool = False) -> str:
    """The values of a row in one line. whole: long ones are not cut."""
    texts = []
    for key, value in row.items():
        if key not in ("part", "name", "where") and not (key == "status" and value in ("measured", "skipped")):
            text = f"{value:.4g}" if isinstance(value, float) else str(value).replace("\n", " ")
            texts.append(text if key in ("status", "reason") else f"{key} {text if whole else text[:200]}")
    return ", ".join(texts)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # parts and links go too
    main()
