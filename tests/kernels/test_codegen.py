"""The Triton kernels compile for GPUs that are not here; the generated code is read. No GPU, no interpreter needed."""

import json
import os
import subprocess
import sys

import pytest
from parts import SUPPORT

TARGETS, DTYPES = ("sm_80", "sm_90", "gfx942"), ("fp32", "bf16")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))  # compiled now, not found
    job = str(SUPPORT / "compile_job.py")
    done = subprocess.run([sys.executable, job], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_vector_path_moves_16_bytes_an_access(rows, target, dtype):
    """Every list of the kernel is read and written with 128-bit accesses, as many as its bytes need. (One exception:
    on AMD a thread of AdamW takes 4 elements, which are 8 bytes of a bfloat16 list.)"""
    chosen = [row for row in rows if (row["target"], row["dtype"], row["vector"]) == (target, dtype, True)]
    assert len(chosen) == 9
    for row in chosen:
        exact = target != "gfx942"  # AMD's compiler also merges loads of the tables
        assert row["loads"] == row["read"] if exact else row["loads"] >= row["read"], row
        assert row["stores"] == row["written"], row
        assert row["read"] >= 2 or row["case"] in ("copy", "displace"), "or the test would be idle"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_spilled_on_any_path(rows, target, dtype):
    chosen = [row for row in rows if (row["target"], row["dtype"]) == (target, dtype)]
    assert len(chosen) == 18
    assert [row for row in chosen if row["spills"]] == []


@pytest.mark.parametrize("target", TARGETS)
def test_the_kernel_that_adds_up_partial_sums_compiles_without_spills(rows, target):
    assert [row["spills"] for row in rows if (row["target"], row["case"]) == (target, "finish")] == [0]


@pytest.mark.parametrize("target", TARGETS)
def test_products_and_sums_stay_separate(rows, target):
    """What makes results equal to `reference` bit by bit. (Correctly rounded division has fused steps of its own.)"""
    chosen = [row for row in rows if row["target"] == target and not row["case"].startswith("adamw")]
    assert len(chosen) == 29
    assert [row for row in chosen if row["fused"]] == []


def test_the_scalar_path_makes_no_promise_of_alignment(rows):
    """Otherwise the test of the vector path could not fail: only aligned tables may be read this way."""
    chosen = [row for row in rows if row["vector"] is False and row["target"] != "gfx942"]
    assert len(chosen) == 36
    assert [row for row in chosen if row["loads"] or row["stores"]] == []
