"""One optimizer step: the window of micro-batches and the passes over it.

A method's `step` is written with these verbs:

    backward(objective)              accumulate the gradient in `.grad`, as plain training does (one-pass methods)
    population                       whole data sets, for a method that makes one step (see `population`)
    progress                         share of the run's steps that lie behind, in [0, 1)
    gradient(objective)              return the gradient of the window, `.grad` left empty
    perturbed(sharpness, g, inside)  context: weights at w + eps, eps from g; back bit for bit on leaving, however
    lengths(sharpness, parts)        || T g || of two gradients in one sweep, for `perturbed(..., length=)`
    compose(r0, r1, f0, f1, ...)     the min-max gradient over the partition
    leave(g)                         g is the step's gradient: average it over processes, put it into `.grad`

Rules every pass obeys

    weighting    each stream's loss is the mean over the whole window and all processes: a micro-batch's mean is
                 weighted by its share of the items. 8 x 4 equals 32 x 1, ragged windows included.
    BatchNorm    only clean passes over retain data (and over the union) move buffers; after any other pass all buffers
                 are put back.
    RNG          a second pass (again=True) replays the generators that its first one moved, pass by pass; afterwards
                 they stand where the clean passes left them.
    DDP          `gradient` and the perturbation use the global gradient (sync), or each process its own (local); every
                 forward and backward of a several-pass method runs inside no_sync, `leave` reduces once.
    faults       a non-finite loss or norm raises FloatingPointError on all processes together; whatever is raised,
                 weights and buffers are as before the step and `.grad` is empty.
    waiting      the host reads numbers twice a step and waits for the device each time: the clean losses with the norms
                 that a perturbation needs, and the other losses with the norm of the gradient. What a pass computed is
                 known to be finite only then.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..data import COUNTS
from ..kernels.checks import layout
from ..runtime import all_reduce_mean, broadcast_first, fill_missing, forget_casts
from .context import StepContext
from .readings import Readings
from .replays import Replays
from .sharpness import Sharpness
from .structure import Structure
from .sweeps import Gradient

# A term of the objective that needs no data: parameters -> (value, gradient).
Penalty = Callable[[list[nn.Parameter]], tuple[Tensor, list[Tensor]]]


class Window:
    """See the module's docstring.

    structure: parameters, sweeps and buffers, kept from step to step. batches: the micro-batches, on the device.
    step: number of the optimizer step, counted from 1, for error messages. progress: share of the run's steps that lie
    behind, in [0, 1).
    """

    def __init__(
        self,
        context: StepContext,
        structure: Structure,
        batches: Sequence[Mapping[str, Any]],
        step: int,
        progress: float,
    ):
        self.batches, self.step, self.progress = batches, step, progress
        self.model, self.loss, self.accelerator = context.model, context.loss, context.accelerator
        self._precision = context.precision
        self.sync, self.population = context.sync, context.population
        self.params, self.sweeps, self._buffers = structure.params, structure.sweeps, structure.buffers
        self.sweeps.cosines.clear()
        self.device = self.params[0].device
        self.scaled = getattr(self.accelerator, "scaler", None) is not None
        self.objective: Tensor | None = None  # the window's objective and stream losses, clean, shares of this process
        self.stream_losses: dict[str, Tensor] = {}
        self._buffers_at_start = self._clean = self._buffers.take("at the start of the step")
        self._squares: Tensor | None = None  # of the step's gradient, where a sweep has read it anyway
        self.scaled_losses: list[
            tuple[str, Mapping[str, Tensor]]
        ] = []  # fp16: read where a step is skipped, see `skips`
        self.norm: float | None = None  # of the step's gradient, if a sweep has read it; fp16 gradients are scaled
        self.processes = self.accelerator.num_processes
        self._readings = Readings(step, self.device, self.processes)
        self._totals = self._global_counts()
        self._replays = Replays(self.device)

    def run(self, step: Callable[["Window"], None]) -> Tensor:
        """Run a method's step. Returns this process's share of the clean objective, a detached scalar."""
        try:
            step(self)
            if self._squares is not None and not self.scaled:  # else who takes the norm reads the losses: `settle`
                self.norm = math.sqrt(*self._readings.read([self._squares]))
            broadcast_first(self._buffers.tensors() if self.processes > 1 else [], self.processes)
        except BaseException:
            try:
                self.undo()
            except BaseException:  # a second Ctrl-C: finish first
                self.undo()
                raise
            raise
        finally:
            self.batches = ()  # the trainer keeps the window until the next one: not its data
            self._replays.clear()
        return self.objective

    def undo(self) -> None:
        """Forget the step: weights and buffers as they were when it began, no gradients."""
        self.sweeps.back()
        self._buffers_at_start.put_back()
        for weight in self.params:
            weight.grad = None

    def settle(self, norm: Tensor | float) -> float:
        """The norm of the step's gradient as a number, read with the losses that no one has read yet. Raises
        FloatingPointError for one of these."""
        found = self._readings.read([norm] if torch.is_tensor(norm) else [])
        return found[0] if found else float(norm)

    # ---- verbs ----

    def backward(self, objective: Mapping[str, float], penalty: Penalty | None = None) -> None:
        self._pass(objective, again=False, sync_last=True)
        self._penalise(penalty, again=False)

    def gradient(
        self,
        objective: Mapping[str, float],
        again: bool = False,
        penalty: Penalty | None = None,
        shared: bool = True,
    ) -> Gradient:
        """Gradient of sum over streams of coefficient x mean loss, plus that of the penalty; `again` repeats it at the
        perturbed weights. shared: average it over the processes at once, as a perturbation along it needs; where none
        follows `leave` is early enough."""
        self._pass(objective, again=again, sync_last=False)
        self._penalise(penalty, again=again)
        gradient = []
        for weight in self.params:
            grad = weight.grad
            if grad is not None and grad.stride() != weight.stride() and layout(grad) != layout(weight):
                grad = torch.empty_like(weight, requires_grad=False).copy_(grad)  # kernels walk the weight's memory
            gradient.append(grad)
            weight.grad = None
        if self.sync and shared and not again:
            fill_missing(gradient, self.params, self.processes)
            all_reduce_mean(gradient, self.processes)
        return gradient

    def whole_gradient(self, objective: Mapping[str, float], again: bool = False) -> Gradient:
        """As `gradient`, over the whole sets instead of the window."""
        total: Gradient = [None] * len(self.params)
        for stream, coefficient in objective.items():
            gradient, loss = self.population.mean_gradient(stream)
            total = self.add(torch._foreach_mul(gradient, coefficient), total)
            what = f"loss or gradient norm of the whole set in the {'perturbed' if again else 'clean'} pass"
            norm = float(torch.stack(torch._foreach_norm(gradient)).norm())
            self._readings.require_finite([(what, {f"{stream} loss": loss, f"{stream} gradient": norm})])
            if not again:
                self.stream_losses[stream] = torch.tensor(loss, device=self.device)
                self._add_to_objective(coefficient * self.stream_losses[stream])
        return total

    def lengths(self, sharpness: Sharpness, *parts: tuple[Gradient, bool | None]) -> list[float]:
        """|| T g || of up to two (gradient, inside), read in one sweep. inside: as in `perturbed`.

        A gradient that is not finite raises; under fp16 its length is 0, and the scaler skips the step.
        """
        sums = self.sweeps.squared_lengths(sharpness, parts)
        found = self._readings.read(sums, None if self.scaled else "gradient norm of the perturbation")
        count = len(parts)  # one sum for each part and sweep
        lengths = [math.sqrt(sum(found[k::count])) for k in range(count)]
        tiny = sharpness.rho / torch.finfo(torch.float32).max  # rho / length must be a float32
        return [length if math.isfinite(length) and length > tiny else 0.0 for length in lengths]

    @contextlib.contextmanager
    def perturbed(
        self, sharpness: Sharpness, gradient: Gradient, inside: bool | None = None, length: float | None = None
    ) -> Iterator[None]:
        """Weights at w + eps inside the block. inside: True the forget part only, False the retain part, None all.
        length: || T g ||, if it is known."""
        if length is None:
            (length,) = self.lengths(sharpness, (gradient, inside))
        if self.sweeps.in_place:  # a buffer can be a view of a weight: it is not to be put back to w at w + eps
            self._clean = None
        try:
            if length > 0:
                self.sweeps.move(sharpness, gradient, inside, length)
            del gradient  # the caller may free its gradient for the second pass
            yield
        finally:  # an interrupt inside the return itself is finished by `undo`
            self.sweeps.back()
            if self.sweeps.in_place:
                self._clean = None

    def compose(
        self,
        r0: Gradient | None,
        r1: Gradient | None,
        f0: Gradient | None,
        f1: Gradient | None,
        lam_retain: float,
        lam_forget: float,
        overlap: bool,
    ) -> Gradient:
        """The min-max gradient over the partition; a parameter that no pass reached stays without one."""
        composed, squares = self.sweeps.compose((r0, r1, f0, f1), lam_retain, lam_forget, overlap)
        self._squares = squares
        return composed

    @staticmethod
    def add(a: Gradient, b: Gradient) -> Gradient:
        """Sum of two gradients, in place of the first; None counts as zero."""
        return [x if y is None else y if x is None else x.add_(y) for x, y in zip(a, b, strict=True)]

    def leave(self, gradient: Gradient) -> None:
        fill_missing(gradient, self.params, self.processes)
        all_reduce_mean(gradient, self.processes)
        if self._squares is not None and self.processes > 1:
            self._squares = self.sweeps.squares(gradient)
        for weight, grad in zip(self.params, gradient, strict=True):
            weight.grad = grad

    # ---- passes ----

    def _pass(self, objective: Mapping[str, float], again: bool, sync_last: bool) -> None:
        """Forward and backward of every micro-batch of the streams with a weight, gradients summed in `.grad`."""
        work = [
            (number, stream, coefficient)
            for number in range(len(self.batches))
            for stream, coefficient in objective.items()
            if coefficient != 0 and stream in self.batches[number]
        ]
        losses: dict[str, Tensor] = {}
        own: dict[int, Tensor] = {}
        records = not again and not sync_last
        if records:
            self._replays.begin()
        forget_casts()  # the weights have moved since the last pass
        for place, (number, stream, coefficient) in enumerate(work):
            last = place == len(work) - 1
            context = contextlib.nullcontext() if sync_last and last else self.accelerator.no_sync(self.model)
            if again:
                self._replays.repeat(number, stream)
            moves = stream in ("retain", "union") and not again
            if moves:
                self._clean = None
            elif self._clean is None:
                self._clean = self._buffers.take("after the last pass that moved them")
            try:
                with context, self._precision():
                    share = self._share_of_mean(number, stream)
                    self.accelerator.backward(share * coefficient)
            finally:
                if not moves:
                    self._clean.put_back()
            if self.sweeps.in_place:
                self._own_gradients(own)
            if records:
                self._replays.record(number, stream)
            value = share.detach().float()
            losses[stream] = losses[stream] + value if stream in losses else value
        if again:
            self._replays.end()
        what = f"loss in the {'perturbed' if again else 'clean'} pass"
        if self.scaled:
            self.scaled_losses.append((what, losses))
        else:
            self._readings.later(what, losses)
        if not again:
            self.stream_losses.update(losses)
            self._add_to_objective(sum(losses[stream] * objective[stream] for stream in losses))

    def _own_gradients(self, own: dict[int, Tensor]) -> None:
        """A captured graph writes gradients to the same memory in every pass: take copies, before the next one does.
        own: those of this pass that are copies already; further micro-batches are added to them."""
        new = {i: w.grad for i, w in enumerate(self.params) if w.grad is not None and w.grad is not own.get(i)}
        copies = [torch.empty_like(grad) for grad in new.values()]
        if copies:
            torch._foreach_copy_(copies, list(new.values()))
        for i, copy in zip(new, copies, strict=True):
            self.params[i].grad = own[i] = copy

    def _penalise(self, penalty: Penalty | None, again: bool) -> None:
        """Add a penalty's gradient to `.grad`. The same on every process, so a mean over processes leaves it."""
        if penalty is None:
            return
        value, gradient = penalty(self.params)
        if self.scaled:
            torch._foreach_mul_(gradient, self.accelerator.scaler.get_scale())
        for weight, grad in zip(self.params, gradient, strict=True):
            weight.grad = grad if weight.grad is None else weight.grad.add_(grad)
        if not again:
            self.stream_losses["penalty"] = value.detach().float()
            self._add_to_objective(self.stream_losses["penalty"])

    def _add_to_objective(self, value: Tensor) -> None:
        self.objective = value if self.objective is None else self.objective + value

    def _share_of_mean(self, number: int, stream: str) -> Tensor:
        """This micro-batch's contribution to the stream's mean loss over the window and all processes."""
        batch = self.batches[number]
        items, samples = batch[COUNTS][stream]
        loss = self.loss(self.model, stream, dict(batch[stream]), items)
        if items == 0:  # a filler, or every label masked: the mean of nothing is nan, its share is 0
            loss = torch.nan_to_num(loss)
        if loss.ndim == 0:
            return loss * (items / self._totals[stream][0] * self.processes)
        return loss.sum() * (bool(samples) / self._totals[stream][1] * self.processes)

    def _global_counts(self) -> dict[str, tuple[int, int]]:
        """Items and samples of each stream in the window, over all processes."""
        streams = sorted({stream for batch in self.batches for stream in batch[COUNTS]})
        none = (0, 0)
        counts = [[sum(b[COUNTS].get(stream, none)[k] for b in self.batches) for k in (0, 1)] for stream in streams]
        if self.processes > 1 and counts:
            tensor = torch.tensor(counts, dtype=torch.int64, device=self.device)
            dist.all_reduce(tensor)
            counts = tensor.tolist()
        return {stream: (max(pair[0], 1), max(pair[1], 1)) for stream, pair in zip(streams, counts, strict=True)}
