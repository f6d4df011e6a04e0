"""What a run is refused for, before any work: one error that names the argument, its value and the remedy."""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import psutil
import torch
from torch import nn
from torch.utils.data import IterableDataset, Subset
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames, ParallelMode

from ..arguments import UnlearningArguments
from ..data import ImagesInMemory
from ..methods import Method
from ..runtime import isolated_rng
from .classes import check_classes

# Update sizes of these do not depend on the scale of the gradient.
_SCALE_FREE = ("adam", "lion", "lamb", "adafactor", "adagrad", "adadelta", "rmsprop", "rprop", "ademamix", "muon",
               "apollo", "galore", "signsgd", "sophia")  # fmt: skip


def check_arguments(args: Any, train_dataset: Any, method: Method) -> None:
    if train_dataset is not None:
        raise ValueError(
            "train_dataset=...: UnlearningTrainer takes two sets instead. Pass forget_dataset= and retain_dataset=; "
            "split_forget(train_dataset, indices) makes both."
        )
    if not isinstance(args, UnlearningArguments):
        name = type(args).__name__
        raise ValueError(f"args is a {name}: pass hf_sharp_unlearn.UnlearningArguments, which takes the same options.")
    optim = OptimizerNames(args.optim).value
    if "lomo" in optim or "layerwise" in optim:
        raise ValueError(
            f"optim={optim!r} steps inside backward, before the gradient of an unlearning step is composed. "
            "Use an optimizer that steps afterwards, e.g. optim='sgd' or 'adamw_torch'."
        )
    if args.deepspeed:
        raise ValueError(
            f"deepspeed={args.deepspeed!r}: its engine steps inside backward, and an unlearning step has several. "
            "Remove it and launch with torchrun or accelerate launch (DistributedDataParallel)."
        )
    if args.fsdp:
        raise ValueError(
            f"fsdp={args.fsdp!r}: perturbing sharded weights is not supported yet. Use DistributedDataParallel, or "
            "LoRA for a model that does not fit."
        )
    if args.train_sampling_strategy == "batch_rebalance":
        raise ValueError(
            "train_sampling_strategy='batch_rebalance' deals its own batches to the processes, without the second "
            "stream. Use 'random', 'sequential' or 'group_by_length'."
        )
    config = args.accelerator_config
    for name in ("split_batches", "dispatch_batches"):
        if getattr(config, name, None):
            raise ValueError(f"accelerator_config.{name}=True cannot split two streams. Leave it at its default.")


def check_forget_indices(indices: Any, forget_dataset: Any) -> list[int] | None:
    """The rows as whole numbers, or None. Raises ValueError unless there is one for each sample of the forget set."""
    if indices is None:
        return None
    rows = np.asarray(indices.cpu() if isinstance(indices, torch.Tensor) else list(indices))
    count = 0 if forget_dataset is None else len(forget_dataset)
    if rows.ndim != 1 or rows.dtype.kind not in "iu" or len(np.unique(rows)) != count:
        raise ValueError(
            f"forget_indices has {rows.size} entries ({rows.dtype}), forget_dataset {count} samples: give the "
            "row number of each sample in the training data once, or leave forget_indices out."
        )
    return rows.tolist()


def check_loaders(args: TrainingArguments, datasets: Mapping[str, Any]) -> None:
    """Images that lie on an accelerator are loaded by this process, and are not pinned; on a CPU nothing is."""
    if args.device.type == "cpu":
        args.dataloader_pin_memory = False  # torch would warn of it in every run
    for name, data in datasets.items():
        if isinstance(data, ImagesInMemory) and data.device.type != "cpu":
            if args.dataloader_num_workers:
                raise ValueError(
                    f"dataloader_num_workers={args.dataloader_num_workers}: the images of {name}_dataset lie on "
                    f"{data.device}, which other processes cannot use. Pass 0: there is nothing for them to do."
                )
            args.dataloader_pin_memory = False


def check_hardware(args: TrainingArguments, accelerator: Any, model: nn.Module) -> None:
    """What is known only once the accelerator exists: set from the environment by a launcher, say."""
    kind = accelerator.distributed_type.value
    parallelism = getattr(accelerator, "parallelism_config", None)
    split = parallelism is not None and any(
        getattr(parallelism, f"{name}_enabled", False) for name in ("tp", "cp", "sp")
    )
    split = split or getattr(model, "_tp_size", None) not in (None, 1)
    split = split or getattr(model, "is_distributed_loading_by_transformers", False)
    if split or kind in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA"):
        raise ValueError(
            f"distributed_type={kind}, parallelism_config={parallelism!r}: sharded, tensor- or context-parallel models "
            "and XLA are not supported yet. Use one process, or DistributedDataParallel (torchrun, accelerate launch)."
        )
    if args.parallel_mode == ParallelMode.NOT_DISTRIBUTED:
        raise ValueError(
            f"{args.n_gpu} GPUs in one process: torch's DataParallel averages unevenly. Launch with "
            "'torchrun --nproc_per_node=N', or choose one device with CUDA_VISIBLE_DEVICES=0."
        )


def check_datasets(method: Method, streams: Mapping[str, Any]) -> None:
    """The streams that the method uses, and the forget set if it partitions the model, must be there."""
    required = {part for s in method.streams for part in (("retain", "forget") if s == "union" else (s,))}
    required |= {"forget"} if method.fraction is not None else set()
    for stream, dataset in streams.items():
        name = f"{stream}_dataset"
        if dataset is None:
            if stream in required:
                raise ValueError(f"{name}=None: {method!r} needs it. split_forget(train, indices) makes both sets.")
            continue
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise ValueError(
                f"{name} is a {type(dataset).__name__} without a length: samples are addressed by index. Pass a "
                "map-style data set, e.g. datasets.Dataset.from_generator(...) or load_dataset(..., streaming=False)."
            )
        if len(dataset) == 0:
            raise ValueError(f"{name} is empty: it needs at least one sample.")
    forget, retain = streams["forget"], streams["retain"]
    if forget is not None and forget is retain:
        raise ValueError("forget_dataset and retain_dataset are the same object: they must not share samples.")
    rows = {name: _rows_of(name, dataset) for name, dataset in streams.items() if dataset is not None}
    if len(rows) == 2 and rows["forget"][0] == rows["retain"][0]:
        both = set(rows["forget"][1]) & set(rows["retain"][1])
        if both:
            raise ValueError(
                f"forget_dataset and retain_dataset overlap in {len(both)} rows of the same data set, e.g. "
                f"{sorted(both)[:5]}: a sample is either forgotten or retained. Use split_forget(train, indices)."
            )


def _rows_of(stream: str, dataset: Any) -> tuple[Any, list[int]]:
    """(key of the data that a selection was made from, its rows there); data of other kinds is its own."""
    base, rows = dataset, None
    while isinstance(base, Subset):
        own = [int(i) for i in base.indices]
        rows = own if rows is None else [own[i] for i in rows]
        base = base.dataset
    if rows is not None:
        size = len(base)
        wrong = [i for i in rows if not -size <= i < size]
        rows = [i % size for i in rows]
        if wrong or len(set(rows)) < len(rows):
            problem = f"is out of range at {wrong[:5]}" if wrong else "names rows twice"
            raise ValueError(f"{stream}_dataset, a Subset of {size} rows, {problem}. Use split_forget(train, indices).")
        return id(base), rows
    if isinstance(dataset, ImagesInMemory):
        return dataset.pixels.data_ptr(), dataset.rows.tolist()
    if hasattr(dataset, "_indices") and hasattr(dataset, "data"):  # a datasets.Dataset, perhaps after select
        chunks = dataset.data.table.column(0).chunks if dataset.column_names else []
        if len(chunks) == 1 and chunks[0].buffers()[-1] is not None:
            indices = dataset._indices
            own = range(len(dataset)) if indices is None else indices.column(0).to_pylist()
            return chunks[0].buffers()[-1].address, [chunks[0].offset + i for i in own]
    return object(), []


def check_model(model: nn.Module, method: Method) -> None:
    trainable = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    if not trainable:
        raise ValueError(
            f"model={type(model).__name__} has no trainable parameter: set requires_grad=True on those to unlearn."
        )
    if method.passes > 1 or method.fraction is not None:
        _check_memory(trainable)
    if method.perturbation is not None:
        for name, weight in trainable:
            if torch.finfo(weight.dtype).bits < 32:
                raise ValueError(
                    f"model: {name} is {weight.dtype}, which rounds most of the perturbation {method.perturbation!r} "
                    "away. Load the trainable weights in float32 (dtype='float32'); bf16=True still computes in bf16."
                )


def _check_memory(named: list[tuple[str, nn.Parameter]]) -> None:
    """Two parameters over the same memory would be perturbed, and updated, twice."""
    spans = sorted((w.data_ptr(), w.data_ptr() + w.nbytes, str(w.device), name) for name, w in named if w.numel())
    for (_, end, device, name), (start, _, other_device, other) in zip(spans, spans[1:], strict=False):
        if start < end and start != 0 and device == other_device:
            raise ValueError(
                f"model: {name} and {other} are separate parameters over the same memory. Tie them as one: assign the "
                "same nn.Parameter to both modules, or call model.tie_weights()."
            )


def check_samples(trainer: Any, stream: str, dataset: Any, own_loss: bool) -> None:
    """One sample must reach the model: its columns are arguments of forward, labels included, classes in range."""
    name, model = f"{stream}_dataset", trainer.model
    trainer._set_signature_columns_if_needed()
    accepted = list(trainer._signature_columns)
    labels = [*trainer.label_names, "label", "label_ids"]
    with isolated_rng():
        item = dataset[0]
        usable = set(accepted) - set(labels)
        if isinstance(item, Mapping) and trainer.args.remove_unused_columns and not set(item) & usable:
            raise ValueError(
                f"{name}: none of its columns {sorted(item)} is an argument of {type(model).__name__}.forward "
                f"({', '.join(accepted)}). Rename them, set a transform that makes them, or pass "
                "remove_unused_columns=False with a data_collator."
            )
        try:
            features = trainer._get_collator_with_removed_columns(trainer.data_collator)([item])
        except Exception as error:
            raise ValueError(
                f"{name}: its first sample, a {type(item).__name__}, does not go through the data collator "
                f"({type(error).__name__}: {error}). Samples are dicts of forward's arguments, or pass a data_collator "
                "that makes such a dict of them."
            ) from error
    kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    if isinstance(features, Mapping):
        unknown = sorted(set(features) - set(accepted))
        if unknown and inspect.Parameter.VAR_KEYWORD not in kinds:
            raise ValueError(
                f"{name}: {type(model).__name__}.forward does not take {unknown} (it takes {', '.join(accepted)}). "
                "Drop these columns, or leave remove_unused_columns=True."
            )
        supervised = own_loss or trainer.compute_loss_func is not None or trainer.can_return_loss
        if not supervised and trainer.label_names and not set(features) & set(trainer.label_names):
            raise ValueError(
                f"{name}: no label column ({' or '.join(trainer.label_names)}) reaches the model, so it returns no "
                f"loss. Columns of a sample: {sorted(features)}. Add labels, or pass a {stream}_loss to the method."
            )
    check_classes(name, dataset, item, labels, model)


def checked_loss(loss: torch.Tensor, rows: int, stream: str) -> torch.Tensor:
    """A stream's loss as a 0-d mean or as one value per sample; anything else would be scaled wrongly."""
    if loss.shape == (rows,):
        return loss
    if loss.numel() != 1:
        raise ValueError(
            f"The {stream} loss has shape {tuple(loss.shape)} for a batch of {rows}: return a scalar, the mean over "
            f"the batch's items, or one value per sample, shape ({rows},)."
        )
    return loss.reshape(())


def check_single_step(trainer: Any) -> None:
    """A method that makes one step computes in full precision and needs no optimizer; some hold much memory."""
    name = type(trainer.method).__name__
    if trainer.optimizer is not None or trainer.lr_scheduler is not None:
        raise ValueError(f"optimizers=...: {name} makes one update by itself. Leave optimizers out.")
    if trainer.accelerator.scaler is not None:
        raise ValueError(
            f"fp16=True or mixed_precision='fp16': {name} makes its update in full precision. Leave fp16 out."
        )
    for key, weight in trainer.model.named_parameters():
        if weight.requires_grad and torch.finfo(weight.dtype).bits < 32:
            raise ValueError(
                f"model: {key} is {weight.dtype}, in which sums over a whole set stall. Load the trainable weights in "
                f"float32 (dtype='float32') for {name}."
            )
    check_free_memory(trainer.model, trainer.method, trainer.args.device)


def check_free_memory(model: nn.Module, method: Method, device: torch.device) -> None:
    """Raise ValueError if a method that holds several vectors of the model's size cannot fit them."""
    size = sum(weight.numel() * weight.element_size() for weight in model.parameters() if weight.requires_grad)
    need = method.vectors * size
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + cached
    elif device.type == "cpu":
        free = psutil.virtual_memory().available
    else:
        return
    if need > free:
        raise ValueError(
            f"method={method!r} holds {method.vectors} vectors of the size of the {size / 2**30:.3g} GiB of trainable "
            f"weights: it needs {need / 2**30:.3g} GiB beside weights and activations, {device} has "
            f"{free / 2**30:.3g} GiB free. Unlearn LoRA weights, freeze a part of the model, or take another method."
        )


def check_best_metric(metric: str | None, splits: list[str]) -> None:
    if metric is not None and not any(metric.removeprefix("eval_").startswith(f"{split}_") for split in splits):
        raise ValueError(
            f"metric_for_best_model={metric!r} is not reported: metrics are named by split, eval_<split>_<metric>, "
            f"with the splits {splits}. Pass e.g. 'eval_{splits[-1]}_loss'."
        )


def is_scale_free(optimizer: torch.optim.Optimizer) -> bool:
    return any(word in base.__name__.lower() for base in type(optimizer).__mro__ for word in _SCALE_FREE)
