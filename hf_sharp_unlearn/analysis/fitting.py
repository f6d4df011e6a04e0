"""The training of one model for `estimate_memorization`, with transformers' Trainer."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainingArguments, set_seed

from ..data import select_rows
from ..metrics import collect_outputs
from ..runtime import RngState


@dataclass(frozen=True)
class TrainerFit:
    """Trains a fresh model on some rows and says how right it is on all of them: a `fit` of `estimate_memorization`.

    build_model: () -> model, called after the seed is set; a function at the top level of a module, so that other
        processes can import it. dataset: map-style. arguments: of `TrainingArguments`.
    """

    build_model: Callable[[], nn.Module]
    dataset: Any
    arguments: dict[str, Any] = field(default_factory=dict)
    collator: Callable | None = None
    callbacks: tuple = ()

    def __call__(self, rows: np.ndarray, seed: int) -> np.ndarray:
        return collect_outputs(
            self.train(rows, seed),
            self.dataset,
            batch_size=self.arguments.get("per_device_eval_batch_size", 128),
            collator=self.collator,
            features=False,
            progress=False,
        ).correct

    def train(self, rows: np.ndarray, seed: int) -> nn.Module:
        """The model trained on these rows."""
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        state = RngState(device)
        with tempfile.TemporaryDirectory() as folder:
            set_seed(seed)
            model = self.build_model()
            settings = {
                "report_to": "none",
                "save_strategy": "no",
                "logging_strategy": "no",
                "disable_tqdm": True,
                "dataloader_pin_memory": torch.cuda.is_available(),
                **self.arguments,
            }
            part = select_rows(self.dataset, rows)
            args = TrainingArguments(folder, seed=seed, **settings)
            trainer = Trainer(model, args, self.collator, part, callbacks=list(self.callbacks))
            trainer.remove_callback(PrinterCallback)
            trainer.remove_callback(ProgressCallback)
            try:
                trainer.train()
            finally:
                state.restore()
        return model
