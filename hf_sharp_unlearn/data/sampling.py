"""Which samples make up a step.

plan       what a method makes its epochs of: a few `Pass`es over the data, one after the other (see `Method.plan`).
position   place in the walk through a data set. A pass's anchor: Trainer's own order of the epoch. What is walked
           beside it: passes over the set, each freshly shuffled, continuing across epochs; no sample comes twice within
           one of them.
slot       what the sampler yields: (stream, index, epoch, position). What sits at a position is a pure function of
           (seed, position), so it is the same for any number of workers or processes and after a resume.

A plain data set of pairs cannot do this: its partner sample would have to know the epoch, which data loader workers
and sharded samplers never learn. So the sampler, which runs in the main process, decides everything.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import RandomSampler, Sampler

from ..runtime import RngState, derive_seed, isolated_rng, seed_host


class Slot(NamedTuple):
    stream: str
    index: int
    epoch: int
    position: int
    real: bool = True  # False: a filler for a process whose share of a ragged batch is empty; it has weight 0


class Pass(NamedTuple):
    """One pass over the stream `anchor`, with samples of `beside` in every micro-batch in proportion.

    Without an anchor: a single micro-batch that holds nothing, for a method that makes one step and reads the data
    itself. A stream that is `beside` is so in every epoch, because its walk goes on across them, and never an anchor.
    """

    anchor: str | None
    beside: str | None = None


class Walk:
    """The walk through a set of `size` samples: pass after pass, each in an order of its own."""

    def __init__(self, size: int, seed: int):
        self.size, self.seed = size, seed
        self._pass, self._order = -1, []

    def __getitem__(self, position: int) -> tuple[int, int]:
        """Return (index of the sample, pass) at a position >= 0."""
        number, offset = divmod(position, self.size)
        if number != self._pass:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "forget order", number))
            self._pass, self._order = number, torch.randperm(self.size, generator=generator).tolist()
        return self._order[offset], number


class StreamBatchSampler(Sampler[list[Slot]]):
    """Yields micro-batches of slots; `processes` consecutive ones are one global micro-batch, in rank order.

    orders: stream -> sampler over that set, for every stream that is an anchor. sizes: stream -> samples per process
    and micro-batch. plan(epoch): the epoch's passes. walked: size of the set that is walked beside an anchor. The walk
    advances in proportion to the anchor, so 4 micro-batches of 8 hold the samples of one of 32, at the ragged end of an
    epoch too. accumulation: micro-batches a window; no window mixes two passes, so every pass but the last is filled up
    with empty micro-batches to whole windows.
    """

    def __init__(
        self,
        orders: Mapping[str, Sampler[int]],
        sizes: Mapping[str, int],
        plan: Callable[[int], tuple[Pass, ...]],
        walked: int | None = None,
        *,
        seed: int,
        processes: int = 1,
        drop_last: bool = False,
        accumulation: int = 1,
    ):
        # SeedableRandomSampler is what accelerate makes of a RandomSampler: the order of epoch e is that of a plain
        # Trainer run.
        self.orders = {
            stream: SeedableRandomSampler(order.data_source, data_seed=seed)
            if isinstance(order, RandomSampler) and not isinstance(order, SeedableRandomSampler)
            else order
            for stream, order in orders.items()
        }
        self.sizes, self.plan = dict(sizes), plan
        self.walk = None if walked is None else Walk(walked, seed)
        self.seed, self.processes, self.drop_last, self.accumulation = seed, processes, drop_last, accumulation
        self.epoch = 0
        self._drawn: dict[str, tuple[int, RngState]] = {}  # stream -> next epoch, generators before its draws

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.micro_batches(self.epoch) * self.processes

    def micro_batches(self, epoch: int) -> int:
        """Micro-batches of one process in an epoch, the empty ones included."""
        *others, last = [self._length(piece) for piece in self.plan(epoch)]
        return sum(self._whole_windows(length) for length in others) + last

    def updates(self, epoch: int) -> int:
        """Optimizer steps of an epoch."""
        return -(-self.micro_batches(epoch) // self.accumulation)

    def samples(self, epoch: int) -> int:
        """Samples of the anchors in an epoch."""
        return sum(len(self.orders[piece.anchor]) for piece in self.plan(epoch) if piece.anchor is not None)

    def forgotten(self, epoch: int, micro_batches: int) -> int:
        """Places of forget samples in the first micro-batches of an epoch: at most as many different ones are used. (In
        a union they may come first.)"""
        seen = 0
        for piece in self.plan(epoch):
            length = self._length(piece)
            begun = min(length, micro_batches)
            micro_batches -= min(self._whole_windows(length), micro_batches)
            if piece.anchor is None or begun == 0:
                continue
            end = min(begun * self.sizes[piece.anchor] * self.processes, len(self.orders[piece.anchor]))
            if piece.beside == "forget":
                seen += self._walked(piece, end)
            elif piece.anchor in ("forget", "union"):
                seen += end
        return seen

    def too_small(self) -> list[tuple[str, int]]:
        """(stream, samples of a global batch) of the anchors of the first epoch that `drop_last` would drop whole."""
        groups = {piece.anchor: self.sizes[piece.anchor] * self.processes for piece in self.plan(0) if piece.anchor}
        return [(s, size) for s, size in groups.items() if self.drop_last and len(self.orders[s]) < size]

    def __iter__(self) -> Iterator[list[Slot]]:
        epoch, passes = self.epoch, self.plan(self.epoch)
        for number, piece in enumerate(passes):
            yield from [[]] * self.processes if piece.anchor is None else self._pass(piece, epoch)
            if number < len(passes) - 1:
                length = self._length(piece)
                yield from [[]] * ((self._whole_windows(length) - length) * self.processes)

    def _length(self, piece: Pass) -> int:
        """Micro-batches of one process in a pass."""
        if piece.anchor is None:
            return 1
        group = self.sizes[piece.anchor] * self.processes
        count = len(self.orders[piece.anchor])
        return count // group if self.drop_last else -(-count // group)

    def _whole_windows(self, length: int) -> int:
        return -(-length // self.accumulation) * self.accumulation

    def _pass(self, piece: Pass, epoch: int) -> Iterator[list[Slot]]:
        anchor = self._anchor_order(piece.anchor, epoch)
        group = self.sizes[piece.anchor] * self.processes
        end = len(anchor) // group * group if self.drop_last else len(anchor)
        first = 0 if piece.beside is None else epoch * self._walked(piece, end)
        for low in range(0, end, group):
            high = min(low + group, end)
            shares = [self._share(low, high, rank) for rank in range(self.processes)]
            batches = [
                [Slot(piece.anchor, anchor[position], epoch, position, real) for position, real in share]
                for share in shares
            ]
            if piece.beside is not None:
                low_walk, high_walk = first + self._walked(piece, low), first + self._walked(piece, high)
                for rank, batch in enumerate(batches):
                    for position, real in self._share(low_walk, high_walk, rank):
                        batch.append(Slot(piece.beside, *self.walk[position], position, real))
            yield from batches

    def _walked(self, piece: Pass, position: int) -> int:
        """How far the walk has come when the anchor stands at `position`: rounded up, so no micro-batch lacks it."""
        return -(-position * self.sizes[piece.beside] // self.sizes[piece.anchor])

    def _share(self, low: int, high: int, rank: int) -> list[tuple[int, bool]]:
        """Positions of one process out of [low, high), as even as possible."""
        count = high - low
        share = range(low + rank * count // self.processes, low + (rank + 1) * count // self.processes)
        return [(position, True) for position in share] or [(low, False)]

    def _anchor_order(self, stream: str, epoch: int) -> list[int]:
        order = self.orders[stream]
        if isinstance(order, SeedableRandomSampler):
            order.set_epoch(epoch)
            return list(order)
        return self._drawn_order(stream, order, epoch)

    def _drawn_order(self, stream: str, order: Sampler[int], epoch: int) -> list[int]:
        """Of a sampler that draws from the global generator (group_by_length): the order that Trainer's run with this
        seed would have, as long as nothing else in it draws from that generator. An epoch draws the seed of the
        loader's workers first, then its order; so that of an epoch follows from those before it."""
        if self._drawn.get(stream, (0, None))[0] > epoch:
            del self._drawn[stream]
        with isolated_rng():
            if stream not in self._drawn:
                seed_host(self.seed)
                self._drawn[stream] = 0, RngState(torch.device("cpu"))
            first, state = self._drawn[stream]
            state.restore()
            for _ in range(first, epoch + 1):
                torch.empty((), dtype=torch.int64).random_()
                indices = list(order)
            self._drawn[stream] = epoch + 1, RngState(torch.device("cpu"))
        return indices


def stream_sampler(loader: torch.utils.data.DataLoader) -> StreamBatchSampler:
    """The sampler of a loader that accelerate may have sharded. Raises ValueError for a loader of another kind."""
    sampler = getattr(loader, "batch_sampler", None)
    sampler = getattr(sampler, "batch_sampler", sampler)
    if not isinstance(sampler, StreamBatchSampler):
        raise ValueError(
            f"get_train_dataloader() returned a loader whose batches are made by a {type(sampler).__name__}: an "
            "unlearning run needs micro-batches of several streams, at positions that a resume finds again. Wrap what "
            "super().get_train_dataloader() returns, or change data_collator, the data sets or _get_train_sampler."
        )
    return sampler
