"""Shared fixtures. Everything is offline, on CPU, with the Triton kernels in Triton's interpreter.

GPU_TESTS=1 runs the kernel tests on a GPU instead: `make test-gpu`.
"""

import gc
import logging
import os
import subprocess
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
if os.environ.get("GPU_TESTS") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["TRITON_INTERPRET"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# What torch.compile made for one instruction set fails under another, and its cache does not tell them apart.
_isa = os.environ.get("ATEN_CPU_CAPABILITY", "native")
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"inductor-{os.getuid()}-{_isa}"))

import optional_packages  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from parts import SUPPORT, Mlp, rows  # noqa: E402

from hf_sharp_unlearn import UnlearningArguments, UnlearningTrainer, split_forget  # noqa: E402
from hf_sharp_unlearn.kernels import tiles  # noqa: E402

if os.environ.get("GPU_TESTS") != "1":
    tiles.TILE = 1 << 17  # so that the tests' tensors have more than one
# One order of summation is enough for every claim, and the models are tiny: `make test-settings` sets other numbers.
torch.set_num_threads(int(os.environ.get("TEST_THREADS", "1")))


# Files that take longest: they begin first, so that no worker is left with one of them in the end. (Workers take whole
# files, `--dist loadfile`: what the tests of a file share is made once.)
LONGEST = (
    "test_demo",
    "test_gpu_check",
    "test_ddp",
    "test_tutorial",
    "test_hub",
    "test_resume",
    "test_contract",
    "test_memorization",
)


def pytest_collection_modifyitems(items):
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(LONGEST)))


def pytest_collection_finish(session):
    """Trainer collects garbage at the start of every run; what the imports have left need not be looked at again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    return (yield from _skipped_without())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    return (yield from _skipped_without())


def _skipped_without():
    """Without a package that may be missing, tests that come to need it are skipped by its name."""
    try:
        return (yield)
    except ModuleNotFoundError as error:
        if error.name in optional_packages.NAMES and optional_packages.missing(error.name):
            pytest.skip(f"{error.name} is not installed")
        raise


@pytest.fixture
def caplog(caplog):
    """Other tests, and scripts that they run, leave loggers silenced."""
    logging.disable(logging.NOTSET)
    logging.getLogger().setLevel(logging.WARNING)
    for name in ("hf_sharp_unlearn", *logging.root.manager.loggerDict):
        if name.split(".")[0] == "hf_sharp_unlearn":
            logger = logging.getLogger(name)
            logger.disabled, logger.propagate = False, True
            logger.setLevel(logging.NOTSET)
    return caplog


@pytest.fixture
def make_trainer(tmp_path):
    """A factory of trainers; `trainer` goes to the trainer, other keywords to UnlearningArguments."""

    def make(
        method,
        model=None,
        data=None,
        forget=range(6),
        kind=UnlearningTrainer,
        trainer=None,
        output_dir=None,
        **arguments,
    ):
        data = rows(24) if data is None else data
        forget_set, retain_set = split_forget(data, list(forget))
        settings = {
            "per_device_train_batch_size": 4,
            "num_train_epochs": 2,
            "learning_rate": 0.1,
            "report_to": "none",
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "use_cpu": True,
            **arguments,
        }
        args = UnlearningArguments(str(output_dir or tmp_path / "out"), **settings)
        extra = {"forget_dataset": forget_set, "retain_dataset": retain_set, **(trainer or {})}
        model = {"model": Mlp() if model is None else model} if "model_init" not in extra else {}
        return kind(**model, args=args, method=method, **extra)

    return make


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """(environment of a client, address) of a Hub on loopback, in a process of its own."""
    root = tmp_path_factory.mktemp("hub")
    command = [sys.executable, str(SUPPORT / "hub_server.py"), str(root / "blobs")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        address = server.stdout.readline().strip()
        yield client(address, root), address
        server.kill()


def client(address, root):
    """The surroundings of a process whose Hub is the one at `address`."""
    paths = {"HF_ENDPOINT": address, "HF_HOME": str(root / "home"), "PYTHONPATH": str(SUPPORT),
             "HUB_BLOBS": str(root / "blobs")}  # fmt: skip
    settings = {"HF_TOKEN": "hf_dummy", "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **paths, **settings}
