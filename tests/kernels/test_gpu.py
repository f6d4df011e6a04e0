"""On a GPU only (`make test-gpu`): the trainer with the Triton kernels, and launches counted by the profiler.

The kernel, optimizer and table tests run there too, on the real kernels instead of the interpreter. Memory errors:

    GPU_TESTS=1 PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck .venv/bin/python -m pytest -q \
        tests/kernels/test_kernels.py -k triton
"""

import pytest
import torch
from parts import assert_same_updates, images, timm_resnet, weights_of

from hf_sharp_unlearn import ASAM, NegGradPlus, SharpMinMax

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@pytest.mark.parametrize("method", [SharpMinMax(0.8, overlap=False), NegGradPlus(0.8, ASAM(1.0))], ids=str)
def test_training_on_the_gpu_is_the_same_with_triton_and_with_the_reference(make_trainer, method):
    """One step, and pixels enough for BatchNorm: see test_sweeps.py, test_channels_last_weights."""
    ends = []
    # By default cuDNN adds up weight gradients in any order, and rounds the operands of convolutions to TF32.
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        for backend in ("reference", "triton"):
            torch.manual_seed(0)
            trainer = make_trainer(method, model=timm_resnet(size=32), data=images(24, size=32), max_steps=1,
                                   use_cpu=False, kernel_backend=backend)  # fmt: skip
            trainer.train()
            ends.append(weights_of(trainer.model))
    assert_same_updates(ends[1], ends[0], weights_of(timm_resnet(size=32).cuda()), 1e-3)


def test_auto_takes_triton_and_the_profiler_sees_at_most_12_launches(make_trainer):
    trainer = make_trainer(
        SharpMinMax(0.8, overlap=False), model=timm_resnet(), data=images(24), max_steps=3, use_cpu=False
    )
    trainer.train()
    assert trainer._step_context(trainer.model).kernels.__name__.endswith("multi_tensor")
    names = ("norms", "finish", "displace", "compose", "update", "copy")
    # acc_events: else torch 2.11 warns, when it enters, that a second cycle would clear the first one's events.
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True) as profile:
        again = make_trainer(
            SharpMinMax(0.8, overlap=False), model=timm_resnet(), data=images(24), max_steps=2, use_cpu=False
        )
        again.train()
    launches = sum(event.count for event in profile.key_averages() if event.key in names)
    assert 0 < launches <= 2 * 12
