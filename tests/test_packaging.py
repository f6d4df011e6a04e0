"""The wheel installs into a clean place and every subpackage imports from outside the repository."""

import os
import pkgutil
import subprocess
import sys
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
