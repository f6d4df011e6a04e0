"""Which samples two data sets share, by what the model sees of them: equal inputs have equal numbers.

Labels are left out: an input that is retained under another label is seen all the same. Columns of a table are read as
they are stored, a million rows in seconds. Samples of other data sets are asked for one by one, as many as a few
seconds allow; how many were looked at is told. Sets of two kinds, a list and a table, say, cannot be compared.
"""

import hashlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..runtime import isolated_rng, seed_host
from .images import ImagesInMemory

LABELS = ("labels", "label", "label_ids", "fine_label", "start_positions", "end_positions")
SECONDS = 3.0  # for samples that have to be asked for
_ROWS = 10_000  # of a table at a time


class Contents(NamedTuple):
    """numbers: (looked at,) uint64, of the first samples of the set. total: how many it has."""

    numbers: np.ndarray
    total: int

    @property
    def whole(self) -> bool:
        return len(self.numbers) == self.total


def contents_of(
    dataset: Any, used: Sequence[str] = (), labels: Sequence[str] = (), seconds: float = SECONDS
) -> Contents:
    """used: names of what the model takes, labels: of its labels; of a sample without any of the first all else counts.
    seconds: for samples that have to be asked for, one by one."""
    left_out = {*labels, *LABELS}
    if isinstance(dataset, ImagesInMemory):
        parts = (dataset.pixels[torch.as_tensor(rows)].cpu().numpy() for rows in _slices(dataset.rows))
        return Contents(_joined(_of_bytes(bytes_of(row) for row in part) for part in parts), len(dataset))
    if hasattr(dataset, "with_format") and hasattr(dataset, "features"):
        return _of_table(dataset, set(used), left_out, seconds)
    numbers, end = [], time.monotonic() + seconds
    with isolated_rng():
        for row in range(len(dataset)):
            if time.monotonic() > end:
                break
            seed_host(0)  # augmentation must not make two of one
            numbers.append(_of_sample(dataset[row], set(used), left_out))
    return Contents(np.array(numbers, dtype=np.uint64), len(dataset))


def shared(one: Contents, other: Contents) -> np.ndarray:
    """Positions in the first of what the second has too."""
    return np.flatnonzero(np.isin(one.numbers, other.numbers))


def _slices(rows: Any) -> Iterable[np.ndarray]:
    rows = np.asarray(rows)
    return (rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS))


def _joined(parts: Iterable[np.ndarray]) -> np.ndarray:
    found = list(parts)
    return np.concatenate(found) if found else np.zeros(0, dtype=np.uint64)


def _number(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _of_bytes(contents: Iterable[bytes]) -> np.ndarray:
    return np.fromiter(map(_number, contents), dtype=np.uint64)


def bytes_of(value: Any) -> bytes:
    """What distinguishes a value from others: of an array its shape, kind and numbers."""
    if torch.is_tensor(value):
        value = value.detach().cpu()
        value = value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return repr((value.shape, value.dtype.str)).encode() + value.tobytes()
    if isinstance(value, bytes):
        return value
    if isinstance(value, Mapping):
        return b"".join(repr(key).encode() + bytes_of(value[key]) for key in sorted(value, key=repr))
    if isinstance(value, list | tuple):
        if value and all(type(entry) in (int, float) for entry in value):
            return bytes_of(np.asarray(value))
        return repr(len(value)).encode() + b"".join(map(bytes_of, value))
    if hasattr(value, "tobytes"):  # a picture
        return repr((getattr(value, "size", None), getattr(value, "mode", None))).encode() + value.tobytes()
    return repr(value).encode()


def _of_sample(sample: Any, used: set[str], left_out: set[str]) -> int:
    if isinstance(sample, Mapping):
        names = sorted(_chosen(list(sample), used, left_out))
        return _number(b"".join(repr(name).encode() + bytes_of(sample[name]) for name in names))
    if isinstance(sample, list | tuple) and len(sample) == 2:  # (input, label)
        return _number(bytes_of(sample[0]))
    return _number(bytes_of(sample))


def _chosen(names: list[str], used: set[str], left_out: set[str]) -> list[str]:
    known = [name for name in names if name in used and name not in left_out]
    return known or [name for name in names if name not in left_out] or names


def _of_table(table: Any, used: set[str], left_out: set[str], seconds: float) -> Contents:
    import pyarrow

    names = _chosen(table.column_names, used, left_out)
    types = {name: table.data.schema.field(name).type for name in names}
    if not used & set(names):  # a transform makes what the model takes: of numbers beside the inputs it makes nothing
        wide = [name for name in names if not (pyarrow.types.is_primitive(types[name]))]
        names = wide or names
    numbers, end = [], time.monotonic() + seconds
    for part in table.with_format("arrow").select_columns(names).iter(batch_size=_ROWS):
        numbers.append(_of_columns([part.column(name) for name in names]))
        if time.monotonic() > end and any(_is_file(types[name]) for name in names):
            break  # files have to be opened
    return Contents(_joined(numbers), len(table))


def _of_columns(columns: Sequence[Any]) -> np.ndarray:
    total = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        total = total * np.uint64(0x9E3779B97F4A7C15) + _of_column(column.combine_chunks())
    return total


def _is_file(kind: Any) -> bool:
    import pyarrow

    return pyarrow.types.is_struct(kind) and {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}


def _of_column(column: Any) -> np.ndarray:
    import pyarrow

    if isinstance(column, pyarrow.ChunkedArray):
        column = pyarrow.concat_arrays(column.chunks) if column.num_chunks else pyarrow.array([], column.type)
    if _is_file(column.type):
        pairs = zip(column.field("bytes").to_pylist(), column.field("path").to_pylist(), strict=True)
        return _of_bytes(content if content is not None else _file(path) for content, path in pairs)
    if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
        return _of_bytes(b"\0" if text is None else text.encode() for text in column.to_pylist())
    flat = pyarrow.types.is_list(column.type) and pyarrow.types.is_primitive(column.type.value_type)
    if flat and column.null_count == 0 and column.values.null_count == 0:
        values, ends = column.values.to_numpy(zero_copy_only=False), column.offsets.to_numpy()
        return _of_bytes(values[a:b].tobytes() for a, b in zip(ends[:-1], ends[1:], strict=True))
    return _of_bytes(bytes_of(value) for value in column.to_pylist())


def _file(path: str | None) -> bytes:
    if path is None or not os.path.isfile(path):
        return repr(path).encode()
    with open(path, "rb") as file:
        return file.read()
