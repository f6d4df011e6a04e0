"""Which arguments, models and machines a run is refused for, before any work: what, its value, and the remedy."""

import warnings
from collections.abc import Sequence
from typing import Any

import psutil
import torch
from torch import nn
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames, ParallelMode

from ..arguments import UnlearningArguments
from ..data import inner_of, judges_samples, problem_of_model, reads_forward_only
from ..methods import Method

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
    if args.full_precision_sharpness and args.torch_compile:
        raise ValueError(
            "full_precision_sharpness=True with torch_compile=True: a graph is compiled for one precision. Compile "
            "without it, and without bf16, fp16 and tf32 for the same result."
        )
    config = args.accelerator_config
    for name in ("split_batches", "dispatch_batches"):
        if getattr(config, name, None):
            raise ValueError(f"accelerator_config.{name}=True cannot split two streams. Leave it at its default.")


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


def check_problem(model: nn.Module, method: Method) -> None:
    """Methods that draw labels, or compare the probabilities of classes, need a model that has some."""
    problem = problem_of_model(model)
    if problem is not None and (method.teacher or method.relabel or method.single_step):
        raise ValueError(
            f"method={method!r} works with classes, and the model has none ({problem}). Use one that follows the "
            "model's own loss: NegGradPlus, SharpMinMax, GradientAscent, FineTune or L1Sparse."
        )


def check_padding(model: nn.Module, batch_size: int, processing_class: Any) -> None:
    """A decoder that classifies sequences finds the last token of each by the padding token, in batches."""
    inner = inner_of(model)
    config = getattr(inner, "config", None)
    if config is None or not judges_samples(type(inner)) or not reads_forward_only(config) or batch_size == 1:
        return
    known = getattr(config.get_text_config(), "pad_token_id", None), getattr(processing_class, "pad_token_id", None)
    if known == (None, None):
        raise ValueError(
            f"model.config.pad_token_id=None: {type(inner).__name__} finds the last token of a text by it, in batches "
            "of more than one. Set it to the tokenizer's (model.config.pad_token_id = tokenizer.pad_token_id, or "
            "eos_token_id), or pass the tokenizer as processing_class."
        )


def check_single_step(
    method: Method, model: nn.Module, device: torch.device, *, own_optimizer: bool, scaled: bool
) -> None:
    """A method that makes one step computes in full precision and needs no optimizer; some hold much memory."""
    name = type(method).__name__
    if own_optimizer:
        raise ValueError(f"optimizers=...: {name} makes one update by itself. Leave optimizers out.")
    if scaled:
        raise ValueError(
            f"fp16=True or mixed_precision='fp16': {name} makes its update in full precision. Leave fp16 out."
        )
    for key, weight in model.named_parameters():
        if weight.requires_grad and torch.finfo(weight.dtype).bits < 32:
            raise ValueError(
                f"model: {key} is {weight.dtype}, in which sums over a whole set stall. Load the trainable weights in "
                f"float32 (dtype='float32') for {name}."
            )
    check_free_memory(model, method, device)


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


def check_best_metric(metric: str | None, splits: Sequence[str], one_test_set: bool) -> None:
    """one_test_set: metrics of the user's only split are reported without its name too, as Trainer does."""
    if metric is None or one_test_set:
        return
    if not any(metric.removeprefix("eval_").startswith(f"{split}_") for split in splits):
        raise ValueError(
            f"metric_for_best_model={metric!r} is not reported: metrics are named by split, eval_<split>_<metric>, "
            f"with the splits {list(splits)}. Pass e.g. 'eval_{splits[-1]}_loss'."
        )


def warn_of_scale_free(method: Method, optimizer: torch.optim.Optimizer) -> None:
    """Where the streams' weights have no effect."""
    if method.disjoint and is_scale_free(optimizer):
        warnings.warn(
            f"{type(optimizer).__name__} makes its steps independent of the scale of the gradient, and with "
            f"overlap=False each parameter follows one stream only: alpha={method.alpha} has no effect. Use "
            "optim='sgd', overlap=True, or lam_retain and lam_forget.",
            stacklevel=2,
        )


def warn_of_unvisited(unvisited: int, size: int, steps: int, epochs: int, batch_size: int) -> None:
    """Where a run ends before all forget samples were used. epochs: that would use them. batch_size: forget samples a
    step and process, as it is."""
    if unvisited:
        seen = max(size - unvisited, 1)
        warnings.warn(
            f"no step of this run uses {unvisited} of the {size} forget samples: its {steps} steps end before. "
            f"{epochs} epochs would use them all (num_train_epochs, without max_steps), or a forget_batch_size of "
            f"{-(-batch_size * size // seen)}.",
            stacklevel=2,
        )


def is_scale_free(optimizer: torch.optim.Optimizer) -> bool:
    return any(word in base.__name__.lower() for base in type(optimizer).__mro__ for word in _SCALE_FREE)
