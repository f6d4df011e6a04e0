"""`kernels/sharp_minmax` as a Kernel Hub repository: layout, imports, card, and loading by the `kernels` package."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest
from parts import ROOT

REPOSITORY = os.path.join(ROOT, "kernels", "sharp_minmax")
SOURCES = os.path.join(REPOSITORY, "torch-ext", "sharp_minmax")


def build_file():
    with open(os.path.join(REPOSITORY, "build.toml"), "rb") as file:
        return tomllib.load(file)


def test_the_repository_has_the_layout_of_a_noarch_kernel():
    build = build_file()
    assert "torch-noarch" in build and build["general"]["license"] == "Apache-2.0"
    assert {"cuda", "rocm"} <= set(build["general"]["backends"])
    assert os.path.isfile(os.path.join(SOURCES, "__init__.py"))
    assert build["general"]["name"].replace("-", "_") == os.path.basename(SOURCES)
    assert all(os.path.isfile(os.path.join(REPOSITORY, name)) for name in ("CARD.md", "flake.nix"))


def test_sources_import_the_standard_library_torch_and_triton_and_each_other_relatively():
    for name in os.listdir(SOURCES):
        if not name.endswith(".py"):
            continue
        with open(os.path.join(SOURCES, name)) as file:
            tree = ast.parse(file.read())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                tops = [] if node.level else [node.module.split(".")[0]]
            elif isinstance(node, ast.Import):
                tops = [alias.name.split(".")[0] for alias in node.names]
            else:
                continue
            assert set(tops) <= {"torch", "triton", *sys.stdlib_module_names}, f"{name} imports {tops}"


def test_triton_is_imported_only_when_it_is_used():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import torch; before = 'triton' in sys.modules\n"
        "import sharp_minmax as smm\n"
        "assert ('triton' in sys.modules) == before and 'sharp_minmax.multi_tensor' not in sys.modules\n"
        "smm.load('triton')\n"
        "assert 'triton' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code, os.path.dirname(SOURCES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_cards_example_runs(tmp_path):
    with open(os.path.join(REPOSITORY, "CARD.md")) as file:
        (code,) = re.findall(r"```python\n(.*?)```", file.read(), re.DOTALL)
    done = subprocess.run([sys.executable, "-W", "error", "-c", "import torch; torch.manual_seed(0)\n" + code],
                          capture_output=True, text=True, cwd=tmp_path, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    loss = float(re.search(r"loss ([\d.]+)", done.stdout).group(1))
    assert loss < 1.5, "it starts at about ln 10 = 2.3"


def test_the_kernels_package_loads_it_from_a_folder(tmp_path):
    """As kernel-builder lays a noarch kernel out: the sources, and metadata, once a backend."""
    if importlib.util.find_spec("kernels") is None or not hasattr(
        importlib.import_module("kernels"), "get_local_kernel"
    ):
        pytest.skip("the PyPI package `kernels` is not installed")
    general = build_file()["general"]
    variant = tmp_path / "build" / "torch-cpu"
    shutil.copytree(SOURCES, variant, ignore=shutil.ignore_patterns("__pycache__"))
    metadata = {"name": general["name"], "id": "_sharp_minmax_cpu_0000000", "version": general["version"],
                "license": general["license"], "python-depends": [], "backend": {"type": "cpu"}}  # fmt: skip
    (variant / "metadata.json").write_text(json.dumps(metadata))
    code = (
        "import pathlib, sys, torch\n"
        "from kernels import get_local_kernel\n"
        "smm = get_local_kernel(pathlib.Path(sys.argv[1]), backend='cpu')\n"
        "w = [torch.full((4,), 2.0)]\n"
        "for name in smm.BACKENDS:\n"
        "    assert smm.load(name).norms(w, [w], [None]).item() == 16.0, name\n"
        "print(smm.__file__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "TRITON_INTERPRET": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(variant) in done.stdout
