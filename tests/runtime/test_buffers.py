"""Snapshots of buffers: exact, in kept memory, in few kernels."""

import pytest
import torch
from torch import nn

from hf_sharp_unlearn.runtime import Buffers


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("brief", torch.ones(2, dtype=torch.bfloat16))
        self.register_buffer("strided", torch.arange(6.0).view(2, 3).t())
        self.register_buffer("expanded", torch.zeros(1).expand(5))
        self.register_buffer("absent", None)
        self.again = self.norm  # the same buffers at a second place


def values(module):
    return {name: value.clone() for name, value in module.named_buffers(remove_duplicate=False)}


@pytest.mark.parametrize("kept", [None, "name"])
def test_every_buffer_comes_back_the_object_and_its_values(kept):
    module = Mixed()
    buffers, objects = Buffers(module), dict(module.named_buffers())
    for turn in range(3):
        module.brief += turn
        before = values(module)
        snapshot = buffers.take(kept)
        module.norm.running_mean += 1
        module.norm.num_batches_tracked += 1
        module.strided.mul_(2)
        module.brief = torch.zeros(2)
        snapshot.put_back()
        now = dict(module.named_buffers())
        assert all(now[name] is value for name, value in objects.items())
        after = values(module)
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_kept_memory_is_used_again_while_the_buffers_are_the_same():
    module = Mixed()
    buffers = Buffers(module)
    first, other = buffers.take("a"), buffers.take("b")
    assert [v.data_ptr() for v in buffers.take("a").values] == [v.data_ptr() for v in first.values]
    assert not {v.data_ptr() for v in first.values} & {v.data_ptr() for v in other.values}
    assert not {v.data_ptr() for v in buffers.take().values} & {v.data_ptr() for v in first.values}
    module.brief = torch.zeros(7)
    assert any(v.shape == (7,) for v in buffers.take("a").values), "another object in its place"
    module.brief.resize_(3).zero_()
    assert any(v.shape == (3,) for v in buffers.take("a").values), "the same object, of another size"


def test_buffers_of_one_dtype_are_copied_together(monkeypatch):
    calls = []
    plain = torch._foreach_copy_
    monkeypatch.setattr(torch, "_foreach_copy_", lambda outs, sources: calls.append(len(outs)) or plain(outs, sources))
    module = nn.Sequential(*(nn.BatchNorm2d(4) for _ in range(53)))
    snapshot = Buffers(module).take()
    assert sorted(calls) == [53, 106]
    snapshot.put_back()
    assert sorted(calls) == [53, 53, 106, 106]


def test_a_subclass_of_tensor_is_copied_by_itself():
    class Special(torch.Tensor):
        pass

    module = nn.Module()
    module.register_buffer("x", torch.ones(3).as_subclass(Special))
    snapshot = Buffers(module).take()
    module.x.zero_()
    snapshot.put_back()
    assert torch.equal(module.x.as_subclass(torch.Tensor), torch.ones(3))
