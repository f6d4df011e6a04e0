"""What the files of a model hold, in one number: whether the folder that a command names is still the same model.

Hashed are names, sizes and headers of all weight files and, of the content, everything up to 64 MiB a file; of larger
files 16 pieces of 4 KiB in every tensor, its first and last one among them. Training moves all elements of a tensor, so
pieces tell it, and a model of 30 GB takes a second instead of minutes. An edit of single elements of a large model can
be missed. When a file was written does not count: a copy is the same model.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterator

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
CONFIGS = ("config.json", "adapter_config.json")
_NOT_OF_THE_MODEL = ("training_args.bin", "optimizer", "scheduler", "scaler", "rng_state", "partition")
_WHOLE = 64 << 20
_PIECE, _PIECES = 4096, 16


def model_fingerprint(name: str) -> str:
    """SHA-256 over the weights and configs of a model: a folder, or a Hub id (then of the files in the Hub's cache).
    An adapter's includes its base model's. Files that are not there are left out: loading the model tells of them."""
    digest = hashlib.sha256()
    for folder in _folders(name):
        for file in sorted(os.listdir(folder)):
            path = os.path.join(folder, file)
            if not os.path.isfile(path) or file.startswith(_NOT_OF_THE_MODEL):
                continue
            if file.endswith(WEIGHTS):
                digest.update(f"{file} {os.path.getsize(path)}\n".encode())
                _add(digest, path)
            elif file in CONFIGS:
                with open(path, "rb") as content:
                    digest.update(content.read())
    return digest.hexdigest()


def _folders(name: str) -> Iterator[str]:
    """The model's folder, and that of an adapter's base."""
    folder = name if os.path.isdir(name) else _cached(name)
    if folder is None:
        return
    yield folder
    path = os.path.join(folder, "adapter_config.json")
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            base = json.load(file).get("base_model_name_or_path")
        if base and base != name:
            yield from _folders(base)


def _cached(name: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    for config in CONFIGS:
        try:
            path = try_to_load_from_cache(name, config)
        except ValueError:  # no name that the Hub could have
            return None
        if isinstance(path, str):
            return os.path.dirname(path)
    return None


def _add(digest: "hashlib._Hash", path: str) -> None:
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if size <= _WHOLE:
            digest.update(file.read())
            return
        for start, end in _spans(path, size):
            count = min(_PIECES, -(-(end - start) // _PIECE))
            for number in range(count):
                file.seek(start + number * max(end - start - _PIECE, 0) // max(count - 1, 1))
                digest.update(file.read(min(_PIECE, end - start)))


def _spans(path: str, size: int) -> list[tuple[int, int]]:
    """Where the header and each tensor of a safetensors file lie; of another file, 256 parts of equal size."""
    with open(path, "rb") as file:
        if path.endswith(".safetensors"):
            (length,) = struct.unpack("<Q", file.read(8))
            if length < size:
                header = json.loads(file.read(length))
                offsets = [entry["data_offsets"] for key, entry in header.items() if key != "__metadata__"]
                return [(0, 8 + length), *sorted((8 + length + a, 8 + length + b) for a, b in offsets if a < b)]
    return [(size * part // 256, size * (part + 1) // 256) for part in range(256)]
