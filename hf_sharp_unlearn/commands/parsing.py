"""From a command line to dataclasses: their fields are the options; a YAML file gives them too, and flags win."""

import argparse
import json
import os
from collections.abc import Sequence
from typing import Any


class UsageError(ValueError):
    """Options that do not go together: the exit code is 2, as for options that do not exist."""


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """With defaults, where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.nargs == 0 and action.const is False and action.option_strings[0].startswith("--no"):
            return f"turn off --{action.dest}"  # transformers gives it the help of what it turns off
        return action.help or "" if action.default in (None, [], "") else super()._get_help_string(action)


# Of TrainingArguments, for scripts that train or not: a command always does the same.
WITHOUT_EFFECT = ("do_train", "do_eval", "do_predict")


def parse(
    command: str,
    description: str,
    dataclasses: Sequence[type],
    argv: Sequence[str],
    defaults: dict[str, Any] | None = None,
) -> tuple:
    """One instance of each dataclass. defaults: of options, where they are others than the dataclasses'.

    Exits with 2 and a line on stderr for options that do not exist or fit.
    """
    from transformers import HfArgumentParser  # torch and all: not for `sharp-unlearn --help`

    parser = HfArgumentParser(
        list(dataclasses),
        prog=f"sharp-unlearn {command}",
        usage="%(prog)s OPTIONS",
        description=description,
        formatter_class=Help,
        allow_abbrev=False,
    )
    parser.set_defaults(**(defaults or {}))
    return tuple(parsed(parser, argv, *dataclasses))


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str], *dataclasses: type) -> list:
    """As `parser` says, `--config` and `--debug` included; [instances] or, without dataclasses, [namespace]."""
    if dataclasses:
        regroup(parser)
    common = parser.add_argument_group("command")
    common.add_argument("--config", metavar="FILE.yaml", help="options by name; flags win over it")
    if "--debug" not in parser._option_string_actions:  # of TrainingArguments, which takes a value
        common.add_argument("--debug", action="store_true", help="print the traceback of an error")
    found = parser.parse_args(with_config(parser, list(argv)))
    for name in WITHOUT_EFFECT:
        if getattr(found, name, False):
            parser.error(f"--{name} says nothing here: this command always trains and evaluates. Leave it out.")
    if not dataclasses:
        return [found]
    return [cls(**{name: getattr(found, name) for name in _fields(cls)}) for cls in dataclasses]


def _fields(cls: type) -> list[str]:
    return [name for name, field in cls.__dataclass_fields__.items() if field.init]


def with_config(parser: argparse.ArgumentParser, argv: list[str]) -> list[str]:
    """The options of the file that `--config` names, as flags in front of the others. The last one of a kind wins."""
    import yaml

    seeker = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    seeker.add_argument("--config")
    path = seeker.parse_known_args(argv)[0].config
    if path is None:
        return argv
    if not os.path.isfile(path):
        parser.error(f"--config {path}: there is no such file")
    try:
        with open(path, encoding="utf-8") as file:
            options = yaml.safe_load(file) or {}
    except yaml.YAMLError as error:
        parser.error(f"--config {path}: {' '.join(str(error).split())}")
    if not isinstance(options, dict):
        parser.error(f"--config {path}: must hold a mapping of options to values, holds a {type(options).__name__}")
    actions = {name: action for action in parser._actions for name in action.option_strings}
    flags: list[str] = []
    for name, value in options.items():
        flag = f"--{str(name).lstrip('-')}"
        action = actions.get(flag) or actions.get(flag.replace("-", "_").replace("__", "--", 1))
        if action is None or action.dest in ("help", "config"):
            parser.error(f"--config {path}: there is no option {name!r}")
        if value is None or value == [] or action.nargs == 0 and not value:
            continue
        flag = action.option_strings[0]
        values = [_word(entry, action) for entry in (value if isinstance(value, list) else [value])]
        if action.nargs == 0:
            flags.append(flag)
        elif len(values) == 1:
            flags.append(f"{flag}={values[0]}")  # with "=", for values that look like flags
        else:
            flags += [flag, *values]
    return flags + argv


def _word(value: Any, action: argparse.Action) -> str:
    if value is False and "no" in (action.choices or ()):
        return "no"  # YAML reads a bare no as false
    return json.dumps(value) if isinstance(value, dict) else str(value)


# TrainingArguments has more than a hundred fields: topic -> how their names begin. The first that fits takes a field.
TOPICS = {
    "unlearning": ("forget_batch", "sync_perturbation", "kernel_backend", "log_perturbation", "in_place",
                   "full_precision", "eval_retain"),
    "optimization": ("learning_rate", "optim", "weight_decay", "adam", "max_grad", "lr_", "warmup", "num_train_epochs",
                     "max_steps", "label_smoothing", "neftune", "galore"),
    "batches and data loading": ("per_device", "gradient_accumulation", "auto_find", "dataloader", "train_sampling",
                                 "length_column", "remove_unused", "label_names", "average_tokens", "ignore_data"),
    "precision and memory": ("bf16", "fp16", "tf32", "half", "gradient_checkpointing", "activation_checkpointing",
                             "torch_", "use_liger", "liger", "use_cache", "jit", "full_determinism"),
    "evaluation": ("eval_", "do_", "metric_for", "greater_is", "load_best", "batch_eval", "prediction", "include_for"),
    "checkpoints": ("save_", "resume", "restore", "enable_jit"),
    "logging": ("log", "report_to", "run_name", "disable_tqdm", "trackio", "project", "include_", "debug",
                "skip_memory", "nan_inf"),
    "Hub": ("hub_", "push_to_hub"),
    "model card": ("forget_selection", "retrain_seconds"),
    "distributed": ("ddp", "fsdp", "deepspeed", "accelerator", "parallelism", "local_rank", "use_cpu", "data_seed"),
}  # fmt: skip


def regroup(parser: argparse.ArgumentParser) -> None:
    """Sort the options without a group of their own by topic, so that --help can be read."""
    for action in parser._actions:
        if action.dest in WITHOUT_EFFECT:
            action.help = argparse.SUPPRESS
    rest = next(group for group in parser._action_groups if group.title in ("options", "optional arguments"))
    topics: dict[str, list[argparse.Action]] = {topic: [] for topic in (*TOPICS, "other training arguments")}
    for action in rest._group_actions:
        if action.dest not in ("help", "seed", "output_dir"):
            fits = (topic for topic, starts in TOPICS.items() if action.dest.startswith(starts))
            topics[next(fits, "other training arguments")].append(action)
    for topic, actions in topics.items():
        if actions:
            parser.add_argument_group(topic)._group_actions += actions
            rest._group_actions = [action for action in rest._group_actions if action not in actions]
