"""The kernel part: all providers make the same step, figures are counted right, and the command runs."""

import csv
import os

import pytest
import torch
from parts import assert_same_updates

from hf_sharp_unlearn.benchmarks import kernel_part
from hf_sharp_unlearn.benchmarks.parts import clocks, providers
from hf_sharp_unlearn.benchmarks.parts.shapes import SHAPES
from hf_sharp_unlearn.benchmarks.parts.traffic import Traffic
from hf_sharp_unlearn.commands.cli import main

CPU = torch.device("cpu")


NAMES = ["per_tensor", "foreach", "tiled", "triton", "tiled_one_sweep", "triton_one_sweep"]


@pytest.mark.parametrize(("name", "clip"), [(n, c) for n in NAMES for c in (False, True) if not (c and "one" in n)])
def test_providers_make_the_same_step_twice(name, clip):
    """Twice: what one round leaves behind must not change the next."""
    ends = []
    for provider in ("reference", name):
        tensors = providers.Tensors.make(shapes := [(40, 33), (1,), (0, 2), (17,)], CPU)
        step = providers.make(provider, tensors, clip)
        step.run()
        step.run()
        ends.append((step.weights, tensors.momenta))
    (expected, moments), (found, others) = ends
    assert_same_updates(found, expected, providers.Tensors.make(shapes, CPU).w)
    assert_same_updates(others, moments)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's own, on some versions
@pytest.mark.parametrize("clip", [False, True])
def test_the_compiled_provider_makes_the_same_step(clip):
    pytest.importorskip("torch._inductor")
    ends = []
    for provider in ("reference", "compiled"):
        tensors = providers.Tensors.make(shapes := [(40, 33), (17,)], CPU)
        try:
            providers.make(provider, tensors, clip).run()
        except Exception as error:
            if "compiler" in str(error).lower():
                pytest.skip("no C++ compiler for torch.compile")
            raise
        ends.append((tensors.w, tensors.momenta))
    (expected, moments), (found, others) = ends
    assert_same_updates(found, expected, providers.Tensors.make(shapes, CPU).w)
    assert_same_updates(others, moments)


def test_the_shapes_are_the_models_they_are_called_after():
    def size(shapes):
        return sum(torch.Size(shape).numel() for shape in shapes)

    assert (len(SHAPES["resnet50"]()), size(SHAPES["resnet50"]())) == (161, 23_528_522)
    assert len(SHAPES["llama-1b"]()) == 146 and size(SHAPES["llama-1b"]()) == 1_235_814_400


def test_traffic_counts_calls_and_operand_bytes_but_no_views():
    a, b, out = torch.ones(100), torch.ones(100), torch.empty(100)
    with Traffic() as traffic:
        a.view(10, 10)
        a.detach()
    assert (traffic.calls, traffic.bytes) == (0, 0)
    with Traffic() as traffic:
        a + b
    assert (traffic.calls, traffic.bytes) == (1, 1200)
    with Traffic() as traffic:
        out.copy_(a)
    assert (traffic.calls, traffic.bytes) == (1, 1200), "copy_ returns what it wrote: read, self, result"


def rows_of(path):
    with open(path) as file:
        return list(csv.DictReader(file))


@pytest.fixture
def small_copies(monkeypatch):
    """The bandwidth of this machine is not what these tests are about."""
    measured = clocks.copy_bandwidth
    monkeypatch.setattr(kernel_part, "copy_bandwidth", lambda device, rounds, mebibytes: measured(device, rounds, 4))


def test_the_command_times_the_kernel_part(tmp_path, capsys, small_copies):
    names = ["per_tensor", "foreach", "tiled", "tiled_one_sweep"]
    command = ["benchmark", "--part", "kernels", "--shapes", "odd", "--rounds", "2", "--device", "cpu",
               "--providers", *names, "--output-dir", str(tmp_path)]  # fmt: skip
    assert main(command) == 0
    found = rows_of(tmp_path / "kernels.csv")
    assert [(r["provider"], r["clipping"]) for r in found] == [
        ("per_tensor", "False"), ("foreach", "False"), ("tiled", "False"), ("tiled_one_sweep", "False"),
        ("per_tensor", "True"), ("foreach", "True"), ("tiled", "True"),
    ]  # fmt: skip
    for row in found:
        assert 0 < float(row["ms_20"]) <= float(row["ms_50"]) <= float(row["ms_80"])
        assert row["torch"] == torch.__version__ and row["device"].startswith("CPU")
    assert [float(r["bytes_a_parameter"]) for r in found if r["provider"] == "tiled"] == [84.0, 84.0]
    assert os.path.getsize(tmp_path / "kernels_cpu.png") > 1000
    assert "1.00x per_tensor" in capsys.readouterr().out
    assert main(command[:-1] + [str(tmp_path)]) == 0
    assert len(rows_of(tmp_path / "kernels.csv")) == 2 * len(found), "rows are appended"


def test_a_run_without_a_gpu_says_that_triton_was_not_measured(tmp_path, capsys, monkeypatch, small_copies):
    monkeypatch.setattr(kernel_part, "names_for", lambda device: ["tiled"])
    assert (
        main(["benchmark", "--part", "kernels", "--shapes", "odd", "--rounds", "1", "--output-dir", str(tmp_path)]) == 0
    )
    missing = [row for row in rows_of(tmp_path / "kernels.csv") if row["provider"] == "triton"]
    assert {row["shape"] for row in missing} == set(SHAPES)
    assert all(row["device"] == "GPU" and row["ms_50"] == "not measured" for row in missing)
    assert "not measured" in capsys.readouterr().out


def test_bad_options_are_refused(tmp_path, capsys):
    assert main(["benchmark", "--device", "cuda", "--output-dir", str(tmp_path)]) == 1
    assert "torch sees no GPU" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["benchmark", "--rounds", "0"])
    assert stopped.value.code == 2
    with pytest.raises(SystemExit) as stopped:
        main(["benchmark", "--providers", "nonsense"])
    assert stopped.value.code == 2
