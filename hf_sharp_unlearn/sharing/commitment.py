"""A commitment to the forget set: its row numbers, hashed with a secret salt.

    digest = HMAC-SHA256(key = salt, message = sorted row numbers, as decimals joined by ",")

The card shows the digest, never rows or samples. Without the salt nobody can try out row numbers against it; with the
salt (`FILE_NAME` in the output folder, which is not uploaded) its holder can prove later which rows were meant.
"""

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Sequence

from ..runtime import write_text

FILE_NAME = "_forget_commitment.json"  # "_": Trainer leaves such files out of every upload


def forget_commitment(indices: Sequence[int], salt: bytes) -> str:
    """The digest of a set of row numbers, in hexadecimal; their order does not matter."""
    message = ",".join(str(row) for row in sorted(int(row) for row in indices))
    return hmac.new(salt, message.encode(), hashlib.sha256).hexdigest()


def keep_commitment(indices: Sequence[int], folder: str) -> str:
    """The digest of the rows with the salt kept in `folder`, drawn if there is none yet."""
    path = os.path.join(folder, FILE_NAME)
    salt = secrets.token_bytes(32)
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            salt = bytes.fromhex(json.load(file)["salt"])
    digest = forget_commitment(indices, salt)
    os.makedirs(folder, exist_ok=True)
    write_text(path, json.dumps({"salt": salt.hex(), "digest": digest, "rows": len(indices)}))
    return digest


def check_commitment(indices: Sequence[int], folder: str) -> bool:
    """True if these are the rows that the digest kept in `folder` stands for. Raises FileNotFoundError without one."""
    with open(os.path.join(folder, FILE_NAME), encoding="utf-8") as file:
        kept = json.load(file)
    return hmac.compare_digest(forget_commitment(indices, bytes.fromhex(kept["salt"])), kept["digest"])
