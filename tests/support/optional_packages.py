"""Packages that an image for GPUs may lack. A test that needs one of them is skipped, and says which (see conftest.py);
a module that needs one to be read at all says `pytest.importorskip`."""

import importlib
import importlib.util
import types

import pytest

NAMES = ("datasets", "ot")


class Absent(types.ModuleType):
    def __getattr__(self, attribute):
        raise ModuleNotFoundError(f"No module named {self.__name__!r}", name=self.__name__)


def missing(name):
    return importlib.util.find_spec(name) is None


def optional(name):
    return Absent(name) if missing(name) else importlib.import_module(name)


def needs(*names):
    """For a test whose work is done by another process."""
    for name in filter(missing, names):
        pytest.skip(f"{name} is not installed")


datasets = optional("datasets")
