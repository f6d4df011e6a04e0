"""What exists only while the steps of a run are made: made in one place, released in one place."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn

from ..step import Steps, Update
from .recovery import Attempt


@dataclass(frozen=True)
class ActiveRun:
    """steps: makes them. update: the optimizer's side of them."""

    steps: Steps
    update: Update

    def release(self) -> None:
        self.update.release()


@contextlib.contextmanager
def undone_if_too_large(
    wanted: bool, model: nn.Module, owned: Sequence[Any], device: torch.device, put_back: Callable[[], None]
) -> Iterator[None]:
    """`auto_find_batch_size`: an attempt that does not fit into memory leaves nothing behind for the next one.

    wanted: False makes no snapshot. owned: the user's own optimizer and scheduler. put_back(): called after an undo.
    """
    start = Attempt(model, list(owned), device) if wanted else None
    try:
        yield
    except Exception as error:
        if start is not None and should_reduce_batch_size(error):
            start.undo()
            put_back()
        raise
