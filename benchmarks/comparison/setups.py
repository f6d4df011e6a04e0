"""What is compared on: networks and their training, forget sets, seeds."""

from dataclasses import dataclass

SELECTIONS = ("hard", "random")  # of the samples to forget
SHARE = 0.06  # of the training data: what is forgotten
TUNING_SEED = 100  # the reported ones are 0, 1, ...


@dataclass(frozen=True)
class Setup:
    """A network, how it is trained, and how long unlearning takes."""

    network: str
    training: dict  # of TrainingArguments: the original and the reference
    epochs: int  # of unlearning
    batch: int
    forget_batch: int
    augment: bool = False


SETUPS = {
    "mini": Setup(
        "resnet18-narrow",
        {"num_train_epochs": 30, "learning_rate": 2e-3, "lr_scheduler_type": "cosine", "optim": "adamw_torch"},
        epochs=4,
        batch=64,
        forget_batch=16,
    ),
    "cifar100": Setup(
        "resnet50",
        {"num_train_epochs": 200, "learning_rate": 0.1, "lr_scheduler_type": "cosine", "optim": "sgd",
         "optim_args": "momentum=0.9", "weight_decay": 5e-4, "max_grad_norm": 0.0},
        epochs=5,
        batch=256,
        forget_batch=64,
        augment=True,
    ),
}  # fmt: skip
