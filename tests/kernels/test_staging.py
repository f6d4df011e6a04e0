"""Memory that is written again while the device may still read it: played with events that are done when we say so, and
on a GPU with real ones."""

import pytest
import torch
from kernel_parts import DEVICE, GPU

from hf_sharp_unlearn.kernels.staging import Rewritten


class Event:
    """A device that copies late: when the test finishes the event, or when it is asked to."""

    def __init__(self):
        self.copies = []

    def record(self, stream):
        self.recorded = True

    def query(self):
        return not self.copies


class Late(Rewritten):
    """Copies happen when `finish` says so, as on a device whose stream is behind the host."""

    def __init__(self, value):
        self.late = []
        super().__init__(value, torch.device("cpu"))
        self._stream = "a stream"

    def _more(self):
        return torch.empty(self.tensor.shape, dtype=self.tensor.dtype), Event()

    def _copy(self, value):
        if self._stream is None:
            return super()._copy(value)
        pinned, event = self._free()
        pinned.copy_(value)
        event.copies.append(1)
        self.late.append((pinned, event))

    def finish(self):
        pinned, event = self.late.pop(0)
        self.tensor.copy_(pinned)
        event.copies.clear()
        return self.tensor.tolist()


def test_pinned_memory_is_written_again_only_when_its_copy_is_over():
    memory = Late(torch.zeros(2, dtype=torch.int64))
    for k in range(1, 4):
        memory.write(torch.full((2,), k))
    assert len(memory._ring) == 3, "three copies under way need three blocks"
    assert [memory.finish() for _ in range(3)] == [[1, 1], [2, 2], [3, 3]]
    for k in range(4, 10):
        memory.write(torch.full((2,), k))
        assert memory.finish() == [k, k]
    assert len(memory._ring) == 3, "and no more"


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_the_last_value_is_read_on_the_device(dtype):
    memory = Rewritten(torch.zeros((2, 3), dtype=dtype), DEVICE)
    for k in range(5):
        memory.write(torch.full((2, 3), k, dtype=dtype))
    assert memory.tensor.dtype == dtype and (memory.tensor.cpu() == 4).all()


@pytest.mark.skipif(not GPU, reason="a stream that is behind the host needs a GPU")
def test_work_that_was_launched_before_reads_the_old_value():
    memory = Rewritten(torch.zeros(1024), DEVICE)
    big = torch.ones(4096, 4096, device=DEVICE)
    seen = []
    for k in range(50):
        big = big @ big * 0  # the stream falls behind
        memory.write(torch.full((1024,), float(k)))
        seen.append(memory.tensor.clone())
    assert [value.unique().tolist() for value in seen] == [[float(k)] for k in range(50)]
