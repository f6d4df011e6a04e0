"""`UnlearningArguments`: TrainingArguments, plus what all unlearning methods share."""

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames, SchedulerType

from .kernels import BACKENDS


@dataclass
class UnlearningArguments(TrainingArguments):
    """Arguments of a run. A method's own hyperparameters (alpha, rho, ...) live in the method.

    Defaults that differ from `TrainingArguments`: `optim="sgd"` with momentum 0.9 (through `optim_args`),
    `learning_rate=0.01`, `lr_scheduler_type="constant"`. `per_device_train_batch_size` is the retain batch size.
    `max_grad_norm` stays at 1.0 and caps the length of an ascent step too: however steep the ascent has become, SGD
    with momentum m moves the weights at most `learning_rate * max_grad_norm / (1 - m)` a step; 0 takes the cap away.
    Batches in pinned memory are copied to the device without waiting (`accelerator_config={"non_blocking": True}`, but
    on MPS), and `logging_nan_inf_filter` is off unless fp16 is on.
    """

    optim: OptimizerNames | str = field(default="sgd", metadata={"help": "The optimizer to use."})
    learning_rate: float = field(default=0.01, metadata={"help": "The initial learning rate."})
    lr_scheduler_type: SchedulerType | str = field(default="constant", metadata={"help": "The schedule to use."})
    forget_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Forget samples per device and micro-batch. Default: the retain batch size in force. When "
            "`auto_find_batch_size` shrinks the retain batch, this one shrinks in proportion."
        },
    )
    sync_perturbation: bool = field(
        default=True,
        metadata={
            "help": "With several processes: perturb along the global gradient, so that results do not depend on the "
            "number of processes. False: each process perturbs along its own gradient (m-sharpness), one all-reduce."
        },
    )
    kernel_backend: str = field(
        default="auto",
        metadata={
            "help": "What perturbs, composes and updates: 'triton' (GPU), 'tiled' (CPU), 'reference' (plain torch), or "
            "'auto', the fastest that can run. A named backend that cannot run is an error."
        },
    )
    log_perturbation: bool = field(
        default=False,
        metadata={
            "help": "Log `perturbation_cosine`, the mean cosine between the perturbation that the weights took and the "
            "one that was meant: 1 unless the weights' precision swallows it; and, under bf16, fp16 or TF32, "
            "`perturbation_cosine_cast`, the same after that rounding. Costs float64 sweeps over each perturbation."
        },
    )
    full_precision_sharpness: bool = field(
        default=False,
        metadata={
            "help": "Under bf16, fp16 or TF32: make all passes of a method with a sharpness in full precision, forward "
            "and backward. What a small perturbation changes in the gradient can be less than what narrow formats "
            "round away (docs/semantics.md has numbers). A step then costs what it costs without bf16."
        },
    )
    in_place: bool = field(
        default=False,
        metadata={
            "help": "Perturb weights where they lie, instead of pointing parameters at perturbed copies; 16 bytes a "
            "parameter and perturbation more. Needed if something of yours reads weights by address, a CUDA graph that "
            "you captured for instance: it would not see the perturbation. `torch_compile` does it by itself."
        },
    )
    logging_nan_inf_filter: bool | None = field(
        default=None,
        metadata={
            "help": "Leave losses that are not finite out of the logs. Off unless fp16 is on: a step with such a loss "
            "is an error here, an evaluation shows it, and looking for them makes the host wait for the device."
        },
    )
    eval_retain_samples: int = field(
        default=5000,
        metadata={"help": "Size of the fixed subsample of the retain set that `evaluate` reports on."},
    )

    forget_selection: str | None = field(
        default=None,
        metadata={
            "help": "How the forget set was chosen, for the model card, e.g. 'class 3' or 'a request for erasure'. It "
            "is published: name no person."
        },
    )
    retrain_seconds: float | None = field(
        default=None,
        metadata={"help": "Seconds that retraining without the forget set takes, for the model card."},
    )

    def __post_init__(self):
        needs_metric = (
            self.load_best_model_at_end
            or self.save_strategy == "best"
            or self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
        )
        if self.metric_for_best_model is None and needs_metric:
            raise ValueError(
                "metric_for_best_model=None: there is no metric that suits every unlearning run, and a loss on retain "
                "or test data alone prefers the model that forgot least. Name one, e.g. 'eval_test_accuracy', "
                "'eval_forget_accuracy', or a metric of your compute_metrics."
            )
        if self.greater_is_better is None and "forget_" in (self.metric_for_best_model or ""):
            # Forgetting well: low accuracy, high loss.
            self.greater_is_better = self.metric_for_best_model.endswith("loss")
        for name in ("forget_batch_size", "eval_retain_samples"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name}={value!r}: must be a whole number of samples >= 1.")
        if self.retrain_seconds is not None and not 0 < self.retrain_seconds < float("inf"):
            raise ValueError(f"retrain_seconds={self.retrain_seconds!r}: must be a number of seconds > 0.")
        if self.kernel_backend != "auto" and self.kernel_backend not in BACKENDS:
            raise ValueError(f"kernel_backend={self.kernel_backend!r}: must be 'auto' or one of {sorted(BACKENDS)}.")
        own_config = self.accelerator_config is not None
        super().__post_init__()
        if not own_config and self.dataloader_pin_memory and not torch.backends.mps.is_available():
            self.accelerator_config.non_blocking = True
        if self.logging_nan_inf_filter is None:
            self.logging_nan_inf_filter = self.fp16
        if self.optim == OptimizerNames.SGD and "momentum" not in (self.optim_args or ""):
            self.optim_args = ",".join(filter(None, [self.optim_args, "momentum=0.9"]))
