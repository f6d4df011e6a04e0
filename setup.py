"""Package layout only; metadata lives in pyproject.toml.

`benchmarks/` is mapped into the package too, as `hf_sharp_unlearn.benchmarks`: `sharp-unlearn benchmark` runs it.

The kernels are a Kernel Hub repository of their own (`kernels/sharp_minmax`). One copy of their sources is mapped
into the package as `hf_sharp_unlearn.kernels`. `kernels/` itself never gets an `__init__.py`: it would shadow the PyPI
package of that name and break `import transformers` for people who have it.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["hf_sharp_unlearn", "hf_sharp_unlearn.*"]),
        "hf_sharp_unlearn.kernels",
        "hf_sharp_unlearn.benchmarks",
        *(f"hf_sharp_unlearn.benchmarks.{name}" for name in find_packages("benchmarks")),
    ],
    package_dir={
        "hf_sharp_unlearn.kernels": "kernels/sharp_minmax/torch-ext/sharp_minmax",
        "hf_sharp_unlearn.benchmarks": "benchmarks",
    },
    package_data={"hf_sharp_unlearn.sharing": ["templates/*.md"]},
)
