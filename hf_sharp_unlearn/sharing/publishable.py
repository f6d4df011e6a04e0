"""Which files of an output folder may be published: those that a saved model, its card and its report consist of.

A list of what may go, not of what may not: a folder can hold anything, as weights from before the end of forgetting
(`rewind/`), lists of forget rows, or keys. What else should go is named (`also`).
"""

import fnmatch
import os
from collections.abc import Sequence

from transformers.trainer import TRAINER_STATE_NAME

from .model_card import REPORT_FOLDER

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.gguf", "*.onnx", "*.index.json")
CHECKPOINTS = "checkpoint-*"
# What `save_pretrained` of transformers, peft and tokenizers writes, and what belongs to a repository.
_MODEL = ("model*.safetensors", "pytorch_model*.bin", "adapter_model*.safetensors", "adapter_model*.bin",
          "model.safetensors.index.json", "pytorch_model.bin.index.json")  # fmt: skip
_BESIDE = ("config.json", "generation_config.json", "adapter_config.json", "preprocessor_config.json",
           "processor_config.json", "image_processor_config.json", "video_preprocessor_config.json",
           "feature_extractor_config.json", "tokenizer*.json", "tokenizer.model", "tokenizer*.model", "*.tiktoken",
           "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "vocab.bpe", "merges.txt",
           "spiece.model", "sentencepiece*.model", "source.spm", "target.spm", "chat_template*", "chat_template*.jinja",
           "configuration_*.py", "modeling_*.py", "tokenization_*.py", "processing_*.py", "image_processing_*.py",
           "README.md", "LICENSE*", "NOTICE*", "training_args.bin", "all_results.json", "train_results.json",
           "eval_results.json")  # fmt: skip
_REPORT = ("report.json", "report.md", "*.png")
_ADAPTERS = ("adapter_model*.safetensors", "adapter_model*.bin", "adapter_config.json")  # a folder for each name
# What a training run leaves that was computed from the forget set and is not the model: optimizer moments, masks,
# generator states.
_TRACES = ("optimizer*.pt", "optimizer*.bin", "scheduler.pt", "scaler.pt", "rng_state*.pth", "partition.safetensors",
           "teacher.json", TRAINER_STATE_NAME)  # fmt: skip
# Those of a run that stay, and that nobody misses.
_OWN = (CHECKPOINTS, "_*", "rewind", "runs", ".git*", ".cache*", *_TRACES)


def fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def shareable_files(folder: str, training_state: bool = False, also: Sequence[str] = ()) -> list[str]:
    """The files of a folder, by relative path, that are published: model, configuration, card and report.

    training_state: and checkpoints with what was computed from the forget set. also: names of further files, relative
    to the folder. Raises ValueError for one that is not there.
    """
    everything = _files(folder)
    for name in also:
        if os.path.normpath(name) not in everything:
            raise ValueError(f"also={name!r}: there is no such file in {folder}. It is named relative to the folder.")
    inside = fits(os.path.basename(os.path.abspath(folder)), (CHECKPOINTS,))
    named = {os.path.normpath(name) for name in also}
    return [name for name in everything if name in named or _goes(name, inside, training_state)]


def left_out(folder: str, training_state: bool = False, also: Sequence[str] = ()) -> list[str]:
    """The other files of a folder, those aside that a run leaves for itself: what somebody may miss."""
    kept = set(shareable_files(folder, training_state, also))
    return [name for name in _files(folder) if name not in kept and not fits(name.split(os.sep)[0], _OWN)]


def _goes(path: str, in_checkpoint: bool, training_state: bool) -> bool:
    *folders, name = path.split(os.sep)
    if folders and fits(folders[0], (CHECKPOINTS,)):
        return training_state and _goes(os.path.join(*folders[1:], name), True, True)
    if not folders:
        traces = training_state and fits(name, _TRACES) and (in_checkpoint or name != TRAINER_STATE_NAME)
        return fits(name, (*_MODEL, *_BESIDE)) or traces
    if len(folders) == 1 and folders[0] == REPORT_FOLDER:
        return fits(name, _REPORT)
    return len(folders) == 1 and not folders[0].startswith(("_", ".")) and fits(name, _ADAPTERS)


def is_model(name: str) -> bool:
    """True for the name of a file with a model's, or an adapter's, weights."""
    return fits(name, _MODEL) and not name.endswith(".json")


def _files(folder: str) -> list[str]:
    """All files, by relative path, in order. Links to folders are not followed."""
    return sorted(
        os.path.normpath(os.path.join(os.path.relpath(place, folder), name))
        for place, _, names in os.walk(folder)
        for name in names
    )
