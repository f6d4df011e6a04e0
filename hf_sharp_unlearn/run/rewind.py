"""Rewinding (SCRUB+R, Kurmanji et al., NeurIPS 2023, arXiv 2302.09880): forget as much as never having seen, not more.

An error on the forget set far above that on unseen samples of the same classes gives a forgotten sample away. So the
weights at the end of every epoch are kept; when training ends, those are put back whose error on the forget set is
closest to the reference: the *final* model's error on held-out samples of the forget set's classes. The latest epoch
wins a tie.

Weights are kept on disk, in `output_dir/rewind`, until the choice is made; a resumed run finds them there. A run that
is stopped before its last step leaves them there, and the model as it is.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from ..runtime import broadcast_first

FOLDER = "rewind"


class Rewind(TrainerCallback):
    """split: name of the evaluation split that holds the unseen samples. sets: all splits, by name.

    predict(data set, prefix): as `Trainer.predict`. log(numbers): as `Trainer.log`. shift: position t predicts label
    t + 1. processes: how many there are. Raises ValueError for arguments that do not go together with it.
    """

    def __init__(
        self,
        split: str,
        args: TrainingArguments,
        sets: Mapping[str, Any],
        *,
        predict: Callable[[Any, str], Any],
        log: Callable[[dict], None],
        shift: bool,
        processes: int,
    ):
        if split not in sets or split in ("forget", "retain"):
            own = sorted(set(sets) - {"forget", "retain"})
            raise ValueError(
                f"rewind={split!r}: must name an evaluation split of unseen samples; there are {own}. Pass "
                "eval_dataset=."
            )
        if args.load_best_model_at_end:
            raise ValueError(f"rewind={split!r} and load_best_model_at_end=True both choose the final model: use one.")
        for name in ("prediction_loss_only", "batch_eval_metrics"):
            if getattr(args, name):
                raise ValueError(
                    f"{name}=True: rewind={split!r} needs the predictions of whole splits. Leave it False."
                )
        self.split, self._sets, self._predict, self._log = split, sets, predict, log
        self._shift, self._processes = shift, processes
        self.folder = os.path.join(args.output_dir, FOLDER)
        self.chosen: int | None = None  # the epoch, from 1

    def on_train_begin(self, args, state, control, **kwargs):
        self.chosen = None
        if not args.should_save:
            return
        if state.global_step == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
        os.makedirs(self.folder, exist_ok=True)
        whole = int((state.epoch or 0) + 1e-6)  # epochs that a resumed run has behind it
        for epoch in self._errors():
            if epoch > whole:
                for kind in ("json", "safetensors"):
                    os.remove(self._path(epoch, kind))
        missing = sorted(set(range(1, whole + 1)) - self._errors().keys())
        if missing:
            raise ValueError(
                f"rewind={self.split!r}: {self.folder} has not kept the weights of epochs {missing}, to choose among. "
                "Resume with the output_dir of the run that saved the checkpoint, or start again."
            )

    def on_epoch_end(self, args, state, control, model, **kwargs):
        epoch = int(np.ceil((state.epoch or 0) - 1e-6))
        error, _ = self._error("forget")
        if args.should_save:
            save_file(_kept(model), self._path(epoch, "safetensors"))
            with open(self._path(epoch, "json"), "w") as file:
                json.dump({"forget_error": error}, file)

    def on_train_end(self, args, state, control, model, **kwargs):
        if state.global_step < state.max_steps:  # stopped early, perhaps to be resumed: nothing is chosen yet
            return
        _, labels = self._error("forget")
        reference, _ = self._error(self.split, labels)
        epoch, error = 0, 0.0
        if args.should_save:
            epoch, error = min(self._errors().items(), key=lambda pair: (abs(pair[1] - reference), -pair[0]))
            saved = load_file(self._path(epoch, "safetensors"))
            for name, value in _moved(model).items():
                value.copy_(saved[name])
        choice = torch.tensor([epoch, error], dtype=torch.float32, device=args.device)
        broadcast_first([choice, *_moved(model).values()], self._processes)
        self.chosen = int(choice[0])
        if args.should_save:
            shutil.rmtree(self.folder, ignore_errors=True)
        numbers = {"rewind_forget_error": choice[1].item(), "rewind_reference_error": reference}
        self._log({"rewind_epoch": self.chosen, **numbers})

    def _errors(self) -> dict[int, float]:
        """Error on the forget set by epoch, of the epochs that have been kept."""
        errors = {}
        for name in os.listdir(self.folder):
            stem, kind = os.path.splitext(name)
            if kind == ".json":
                with open(os.path.join(self.folder, name)) as file:
                    errors[int(stem.rpartition("-")[2])] = json.load(file)["forget_error"]
        return errors

    def _path(self, epoch: int, kind: str) -> str:
        return os.path.join(self.folder, f"epoch-{epoch}.{kind}")

    def _error(self, split: str, classes: np.ndarray | None = None) -> tuple[float, np.ndarray]:
        """(share of wrong predictions among the samples of these classes, labels of the split)."""
        output = self._predict(self._sets[split], f"rewind_{split}")
        predictions, labels = output.predictions, output.label_ids
        predictions = predictions[0] if isinstance(predictions, tuple) else predictions
        if not isinstance(predictions, np.ndarray) or not isinstance(labels, np.ndarray):
            raise ValueError(f"rewind={self.split!r}: needs logits and one kind of integer labels in {split!r}.")
        if predictions.ndim == labels.ndim + 1:
            predictions = predictions.argmax(-1)
        if self._shift and labels.ndim > 1:
            predictions, labels = predictions[..., :-1], labels[..., 1:]
        counted = labels != -100
        if classes is not None:
            counted &= np.isin(labels, classes)
        if not counted.any():
            raise ValueError(f"rewind={self.split!r}: the split has no sample of the forget set's classes. Add some.")
        return float((predictions != labels)[counted].mean()), np.unique(labels[labels != -100])


def _moved(model: nn.Module) -> dict[str, Tensor]:
    """What training moves: trainable weights and buffers."""
    named = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    return {name: value.detach() for name, value in (*named, *model.named_buffers())}


def _kept(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone().contiguous() for name, value in _moved(model).items()}
