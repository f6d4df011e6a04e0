"""The GPU check: every part runs at toy size, it notices kernels that are wrong, and a part that fails ends alone."""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from parts import ROOT

from hf_sharp_unlearn import kernels
from hf_sharp_unlearn.benchmarks import gpu_check
from hf_sharp_unlearn.benchmarks.gpu import exact, race, timing
from hf_sharp_unlearn.benchmarks.gpu.cases import Guarded, Inputs, Spec, layouts, operations
from hf_sharp_unlearn.benchmarks.gpu.record import Part, Skipped
from hf_sharp_unlearn.benchmarks.parts import foreach_backend
from hf_sharp_unlearn.kernels import reference

CPU = torch.device("cpu")
SPECS = [spec for specs in layouts(quick=True).values() for spec in specs]


def test_every_part_runs_at_toy_size_and_leaves_nothing_behind(tmp_path):
    """As on a machine where only torch and its kin are installed: the package is made importable."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), "--device", "cpu", "--quick"]
    done = subprocess.run([*command, "--output-dir", str(tmp_path / "out")], capture_output=True, text=True,
                          env={**os.environ, "TMPDIR": str(scratch)}, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text("utf-8"))
    assert {name: part["outcome"] for name, part in summary["parts"].items()} == dict.fromkeys(gpu_check.PARTS, "done")
    assert not summary["failures"] and not summary["aims"] and summary["quick"]
    rows = {
        name: json.loads((tmp_path / "out" / f"{name}.json").read_text("utf-8"))["rows"] for name in gpu_check.PARTS
    }
    for reason in (row["reason"] for name in rows for row in rows[name] if row["status"] == "skipped"):
        assert any(word in reason for word in ("GPU", "CPU has no streams", "compute-sanitizer", "dtype")), reason
    named = {row["name"].split(",")[0] for row in rows["exact"] if row["status"] == "passed"}
    assert {operation.name.split(",")[0] for operation in operations()} <= named
    assert [path.name for path in scratch.iterdir() if path.name.startswith("gpu_check-")] == []
    assert not any(path.is_symlink() for path in (ROOT / "hf_sharp_unlearn").iterdir())
    for word in ("CPU", "no check failed", "copy bandwidth", "skipped:"):
        assert word in done.stdout


def test_a_part_imports_this_checkout_whatever_is_installed():
    code = "import hf_sharp_unlearn, hf_sharp_unlearn.kernels as k, hf_sharp_unlearn.benchmarks as b; " \
           "print(hf_sharp_unlearn.__file__, k.__file__, b.__file__)"  # fmt: skip
    with gpu_check.staged() as (path, scratch):
        around = gpu_check.surroundings("cpu", path, scratch)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=around, cwd=ROOT)
        assert len(done.stdout.split()) == 3 and all(file.startswith(path) for file in done.stdout.split()), done
        assert os.path.realpath(done.stdout.split()[0]) == str(ROOT / "hf_sharp_unlearn" / "__init__.py")
    assert not os.path.exists(scratch)


# ---- parts that go wrong ----

ROW = "import json, sys, time; d = sys.argv[sys.argv.index('--output-dir') + 1]; " \
      "json.dump({'rows': [{'name': 'a', 'status': '%s'}]}, open(d + '/env.json', 'w')); "  # fmt: skip


@pytest.mark.parametrize(
    ("code", "outcome", "reason"),
    [
        (ROW % "passed", "done", ""),
        (ROW % "failed", "done", ""),
        (ROW % "passed" + "raise RuntimeError('CUDA error: an illegal access')", "crashed", "CUDA error: an illegal"),
        (ROW % "passed" + "import os; os.abort()", "crashed", "exit status -6"),
        (ROW % "passed" + "time.sleep(60)", "killed", "did not end within"),
        ("pass", "crashed", "it wrote no row"),
    ],
)
def test_a_part_that_goes_wrong_ends_alone_and_what_it_found_is_kept(tmp_path, monkeypatch, code, outcome, reason):
    package = tmp_path / "hf_sharp_unlearn" / "benchmarks" / "gpu"
    package.mkdir(parents=True)
    (package / "env.py").write_text(code)
    monkeypatch.setattr(gpu_check, "GRACE", 1)
    options = argparse.Namespace(device="cpu", quick=True, limit=2.0)
    monkeypatch.setitem(gpu_check.PARTS, "env", gpu_check.Plan(1.0, 0.1))
    start = time.monotonic()
    part = gpu_check.run("env", 2.0, options, tmp_path, str(tmp_path), str(tmp_path))
    assert part["outcome"] == outcome and reason in part["reason"] and time.monotonic() - start < 20
    assert [row["name"] for row in part["rows"]] == ([] if code == "pass" else ["a"])
    failures = gpu_check.summary_of({"env": part}, options, 1.0)["failures"]
    assert len(failures) == (outcome != "done" or "failed" in code)


@pytest.mark.parametrize(("status", "code"), [("failed", 1), ("error", 1), ("missed", None), ("skipped", None)])
def test_the_exit_status_tells_what_failed_and_not_what_is_slow(tmp_path, monkeypatch, capsys, status, code):
    row = {"name": "a row", "status": status, "reason": "because"}
    part = {"outcome": "done", "reason": "", "seconds": 1.0, "rows": [row]}
    monkeypatch.setattr(gpu_check, "run", lambda *args: part)
    command = ["--device", "cpu", "--parts", "env", "--output-dir", str(tmp_path)]
    if code is None:
        gpu_check.main(command)
    else:
        with pytest.raises(SystemExit) as stopped:
            gpu_check.main(command)
        assert stopped.value.code == code
    shown = capsys.readouterr().out
    assert "because" in shown and ("FAILED:" in shown) is (code == 1)


def test_what_does_not_fit_into_the_limit_is_skipped_and_said_to_be(tmp_path, capsys):
    gpu_check.main(["--device", "cpu", "--quick", "--limit", "5", "--parts", "env", "--output-dir", str(tmp_path)])
    summary = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    assert (
        summary["parts"]["env"]["outcome"] == "skipped" and summary["left out by --parts"] == list(gpu_check.PARTS)[1:]
    )
    assert "were left of --limit 5" in capsys.readouterr().out


def test_an_error_is_a_row_and_the_next_measurement_is_made(tmp_path):
    part = Part("x", CPU, True, str(tmp_path), limit=100)

    def fails():
        raise ValueError("too large")

    def skips():
        raise Skipped("no need")

    def breaks():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    assert part.attempt("one", fails) is None and part.attempt("two", skips) is None
    assert part.attempt("three", lambda: {"ms": 1.0}) == {"ms": 1.0}
    assert part.attempt("four", lambda: {}, needs=1000) is None
    part.check("five", False)
    part.aim("six", 2.0, at_most=1.0)
    with pytest.raises(RuntimeError):
        part.attempt("seven", breaks)
    rows = json.loads((tmp_path / "x.json").read_text("utf-8"))["rows"]
    found = ["error", "skipped", "measured", "skipped", "failed", "skipped", "error"]
    assert (
        [row["status"] for row in rows] == found
        and "too large" in rows[0]["reason"]
        and os.listdir(tmp_path) == ["x.json"]
    )
    part.device = torch.device("cuda")
    for value, status in ((1.0, "reached"), (2.0, "missed"), (None, "skipped")):
        part.aim("aim", value, at_most=1.0)
        assert part.rows[-1]["status"] == status
    part.aim("aim", 0.8, at_least=0.85)
    assert part.rows[-1]["status"] == "missed"


# ---- kernels that are wrong ----


def backend(**functions):
    """`reference` with some functions exchanged."""
    return SimpleNamespace(**(vars(reference) | functions))


def verdict(kernels_there, name, dtype=torch.float32):
    operation = next(operation for operation in operations() if operation.name == name)
    return exact.compare(kernels_there, operation, Inputs(SPECS, dtype, CPU, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_reference_passes_its_own_check(dtype):
    for operation in operations():
        found = exact.compare(reference, operation, Inputs(SPECS, dtype, CPU, 1))
        assert found["status"] == "passed" and found["max_ulp"] == 0, (operation.name, found)


def test_wrong_kernels_are_noticed():
    def spoil(change):
        def displace(weights, grads, outs, *args):
            reference.displace(weights, grads, outs, *args)
            change(weights, outs)

        return backend(displace=displace)

    def beyond(weights, outs):
        outs[0].as_strided((1,), (1,), outs[0].storage_offset() + outs[0].numel()).fill_(0.0)

    faults = {
        "guard band": beyond,
        "an input has changed": lambda weights, outs: weights[-1].add_(1.0),
        "not what `reference` computes": lambda weights, outs: outs[0].mul_(1 + 2**-23),
        "not its formula": lambda weights, outs: outs[3].view(-1)[-1:].fill_(float("nan")),
    }
    for words, change in faults.items():
        found = verdict(spoil(change), "displace SAM None")
        assert found["status"] == "failed" and words in found["reason"], (words, found)
    short = backend(norms=lambda *args: reference.norms(*args) * (1 - 1e-5))
    assert "sum of squares" in verdict(short, "norms SAM None None")["reason"]
    forgetful = backend(restore=lambda weights, backups, saved: saved.clear())
    with pytest.raises(AssertionError, match="did not put the weights back"):
        verdict(forgetful, "perturb and restore")

    def leaks(direction, outs=None, accumulate=False):
        d, _ = reference.compose(direction, outs, accumulate)
        for x, m, r in zip(d, direction.masks, direction.r1, strict=True):
            x.copy_(x * m + r * ~m)
        return d, torch.stack([x.double().square().sum() for x in d]).sum()

    assert exact.hidden_nan(kernels.load("triton"), CPU)["status"] == "passed"
    assert exact.hidden_nan(backend(compose=leaks), CPU)["status"] == "failed"
    assert exact.refusals(reference, CPU)["status"] == "failed", "it computes on float16"


def test_kernels_that_read_what_was_there_before_are_noticed(tmp_path):
    last = {}

    def late(weights, direction, *args):
        reference.sgd(weights, last.get("direction", direction), *args)
        last["direction"] = direction

    part = Part("x", CPU, True, str(tmp_path), 100)
    assert race.rewritten(reference, part, (7, 33), "two lists in turn")["status"] == "passed"
    assert race.rewritten(backend(sgd=late), part, (7, 33), "two lists in turn")["status"] == "failed"
    noisy = backend(norms=lambda *args: reference.norms(*args) * (1 + 1e-9 * torch.rand((), dtype=torch.float64)))
    assert race.repeated(reference, part, (7, 33))["status"] == "passed"
    assert race.repeated(noisy, part, (7, 33)) == {"status": "failed", "turns": 3, "norms": 2}


def test_units_in_the_last_place():
    for dtype in (torch.float32, torch.bfloat16):
        one = torch.tensor([1.0, -1.0, 0.0], dtype=dtype)
        tiny = torch.finfo(dtype)
        assert exact.max_ulp(one, one) == 0 and exact.max_ulp(one, one * torch.tensor(1 + tiny.eps)) == 1
        assert exact.max_ulp(one[2:], -one[2:]) == 0, "the two zeros are one number"
        smallest = torch.tensor([tiny.smallest_normal * tiny.eps], dtype=dtype)
        assert exact.max_ulp(smallest, -smallest) == 2


def test_nan_is_the_highest():
    nan = float("nan")
    assert all(exact.highest(values) != exact.highest(values) for values in ([nan, 1.0], [1.0, nan], [0.0, nan, 2.0]))
    assert exact.highest([1.0, 3.0, 2.0]) == 3.0 and exact.highest([]) == 0.0


def test_guard_bands_lie_on_both_sides():
    for place in (255, 256, 260, 261):
        guarded = Guarded([Spec((4,), (1,), 1)], torch.float32, CPU)
        guarded.tensors[0].as_strided((1,), (1,), place).fill_(1.0)
        assert guarded.intact() is (256 < place < 261)


class Event:
    def __init__(self, enable_timing=False):
        self.time = 0.0

    def record(self):
        self.time = time.perf_counter()

    def elapsed_time(self, other):
        return 1e3 * (other.time - self.time)


def test_what_only_a_gpu_runs_is_no_dead_code(tmp_path, monkeypatch):
    """With a torch.cuda whose streams are the one of the CPU."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    for name, stub in {
        "Stream": lambda: stream,
        "stream": lambda chosen: contextlib.nullcontext(),
        "current_stream": lambda: stream,
        "synchronize": lambda: None,
        "_sleep": lambda cycles: None,
        "mem_get_info": lambda: (1 << 40, 1 << 40),
        "Event": Event,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    monkeypatch.setattr(Part, "gpu", True)
    part, triton = Part("x", CPU, True, str(tmp_path), 100), kernels.load("triton")
    assert exact.side_streams(triton, part)["status"] == "passed"
    assert exact.large(triton, part, 1 << 15, 17)["status"] == "passed"
    assert race.two_streams(triton, part, (7, 1025), turns=3) == {"status": "passed", "launches": 6, "wrong": 0}
    gpu = SimpleNamespace(type="cuda")
    assert 2 <= timing.device_ms([lambda: time.sleep(0.002)], gpu, repeats=2, rounds=3) < 30
    assert 2 <= timing.elapsed_ms(lambda: time.sleep(0.002), gpu, 3) < 30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 20, 1 << 40))
    with pytest.raises(Skipped, match="are free"):
        exact.large(triton, part, 1 << 15, 17)


# ---- what it compares with, and what it measures with ----


def test_the_multi_tensor_functions_of_torch_compute_what_the_reference_does():
    for operation in operations():
        if operation.name.split()[0] in ("sgd", "adamw"):
            continue
        inputs = Inputs(SPECS, torch.float32, CPU, 3)
        (found, sums), (expected, others) = (operation.run(k, inputs) for k in (foreach_backend, reference))
        for name in expected:
            for a, b in zip(found[name], expected[name], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        if others is not None:
            torch.testing.assert_close(sums, others, rtol=1e-5, atol=0)
    before = dict(kernels.BACKENDS)
    with foreach_backend.registered():
        assert kernels.backend_for(CPU, name="foreach") is foreach_backend
    assert before == kernels.BACKENDS and "hf_sharp_unlearn.kernels.foreach" not in sys.modules


def test_times_are_those_of_a_call():
    calls = [lambda: time.sleep(0.002), lambda: time.sleep(0.004)]
    assert 2 <= timing.device_ms(calls, CPU, repeats=4, rounds=3) < 30
    assert 2000 <= timing.host_us(calls[:1], CPU, repeats=3) < 30000
    assert 4 <= timing.elapsed_ms(calls[1], CPU, 3) < 30
