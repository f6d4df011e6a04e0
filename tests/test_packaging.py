"""The wheel installs into a clean place and every subpackage imports from outside the repository."""

import ast
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
from parts import ROOT

import hf_sharp_unlearn


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built by the setuptools at hand: nothing is fetched."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    # setuptools leaves its build folder beside the sources: build from a copy of what is tracked.
    source = tmp_path_factory.mktemp("source")
    for name in ("hf_sharp_unlearn", "kernels", "benchmarks", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        subprocess.run(["cp", "-r", os.path.join(ROOT, name), str(source)], check=True)
    subprocess.run([*command, "--wheel-dir", str(out), str(source)], check=True, env=environment, timeout=300)
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_nothing_else_at_the_top(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"hf_sharp_unlearn", f"hf_sharp_unlearn-{hf_sharp_unlearn.__version__}.dist-info"}
    benchmarks = {f"benchmarks/{name}.py" for name in ("vision", "parts/rows", "comparison/runs")}
    inside = {"kernels/reference.py", "sharing/templates/model_card.md", *benchmarks}
    assert {f"hf_sharp_unlearn/{name}" for name in inside} <= set(names)
    modules = {name for _, name, _ in pkgutil.walk_packages(hf_sharp_unlearn.__path__, "hf_sharp_unlearn.")}
    for module in modules:
        stem = module.replace(".", "/")
        assert f"{stem}.py" in names or f"{stem}/__init__.py" in names, module


def test_the_source_distribution_is_the_checkout(tmp_path):
    """Every tracked file that a reader or a test needs."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not tracked:
        pytest.skip("this is no checkout")
    for name in tracked:
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "source" / name)
    code = f"from setuptools.build_meta import build_sdist; print(build_sdist({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path / "source", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        inside = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {name for name in tracked if name not in inside and not name.startswith(".")} == set()


def test_what_is_imported_is_declared():
    """Under the names that packages have on an index; what comes with a declared one by contract is not asked for."""
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = {re.match(r"[\w-]+", line)[0].lower() for line in metadata["dependencies"]}
    names = {"sklearn": "scikit-learn", "PIL": "pillow", "ot": "pot", "yaml": "pyyaml"}
    found = set()
    for path in (ROOT / "hf_sharp_unlearn").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split(".")[0])
    optional = {"timm", "peft", "accelerate_tpu", "hf_sharp_unlearn"}
    found = {names.get(name, name) for name in found - set(sys.stdlib_module_names) - optional}
    assert {name for name in found if name.lower() not in declared} == set()


def test_the_installed_wheel_imports_every_subpackage_from_outside_the_repository(wheel, tmp_path):
    target = tmp_path / "site"
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, env=environment, timeout=300)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import importlib, pkgutil, hf_sharp_unlearn as package\n"
        "assert package.__file__.startswith(sys.argv[1]), package.__file__\n"
        "names = [name for _, name, _ in pkgutil.walk_packages(package.__path__, 'hf_sharp_unlearn.')]\n"
        "assert 'hf_sharp_unlearn.kernels.reference' in names, names\n"
        "[importlib.import_module(name) for name in names if not name.endswith('__main__')]\n"
        "print(len(names))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(target)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= 20


def test_kernels_is_no_package_of_its_own():
    """A top-level `kernels/__init__.py` would shadow the PyPI package of that name and break `import transformers`."""
    assert not os.path.exists(os.path.join(ROOT, "kernels", "__init__.py"))


def test_kernels_import_torch_and_nothing_of_the_library():
    folder = os.path.join(ROOT, "kernels", "sharp_minmax", "torch-ext", "sharp_minmax")
    for name in os.listdir(folder):
        if name.endswith(".py"):
            with open(os.path.join(folder, name)) as file:
                assert "hf_sharp_unlearn" not in file.read().replace("hf_sharp_unlearn.kernels", "")
