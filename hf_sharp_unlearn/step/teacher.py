"""The teacher: the starting model, frozen, in eval mode.

Taken before a checkpoint is loaded, and fingerprinted in every checkpoint, so that a resumed run compares with the same
teacher. It costs one copy of the trainable weights; frozen ones (the base under LoRA) are shared with the model.
"""

import copy
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

FILE_NAME = "teacher.json"


class Teacher:
    """A frozen copy of `module` as it is now. Called with a micro-batch it returns the outputs, without a graph."""

    file_name = FILE_NAME

    def __init__(self, module: nn.Module):
        shared = {id(weight): weight for weight in module.parameters() if not weight.requires_grad}
        self.module = copy.deepcopy(module, shared).eval().requires_grad_(False)
        self._fingerprint: str | None = None

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Any]) -> Any:
        return self.module(**inputs)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over names, shapes, dtypes and bytes of all weights and buffers; made once, on first use."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for name, value in (*self.module.named_parameters(), *self.module.named_buffers()):
                digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
                digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def save(self, directory: str) -> None:
        os.makedirs(directory, exist_ok=True)
        with open(os.path.join(directory, FILE_NAME), "w") as file:
            json.dump({"sha256": self.fingerprint}, file)

    def made(self, directory: str) -> bool:
        """True if the checkpoint in `directory` was made with this teacher."""
        path = os.path.join(directory, FILE_NAME)
        if not os.path.isfile(path):
            return False
        with open(path) as file:
            return json.load(file)["sha256"] == self.fingerprint

    def check(self, directory: str) -> None:
        """Raise ValueError unless the checkpoint in `directory` was made with this teacher."""
        if not os.path.isfile(os.path.join(directory, FILE_NAME)):
            raise ValueError(
                f"resume_from_checkpoint={directory!r} has no {FILE_NAME}: it was not saved by a run with a teacher. "
                "Start again from the original model."
            )
        if not self.made(directory):
            raise ValueError(
                f"resume_from_checkpoint={directory!r} was made with another teacher (this one's sha256: "
                f"{self.fingerprint[:12]}...). The teacher is the model that the run began with: build the trainer "
                "with those weights, then resume."
            )
