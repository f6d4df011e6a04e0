"""Trainer's progress bar, for logs that go to a file."""

from typing import Any

from transformers import ProgressCallback
from transformers.trainer_utils import has_length

from ..runtime import progress_bar


class LineProgress(ProgressCallback):
    """A line every few seconds where there is no terminal: a bar that is drawn over again cannot be read in a file."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.training_bar = progress_bar(total=state.max_steps, desc="train")
        self.current_step = 0

    def on_prediction_step(
        self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any
    ) -> None:
        if self.prediction_bar is None and state.is_world_process_zero and has_length(eval_dataloader):
            self.prediction_bar = progress_bar(total=len(eval_dataloader), leave=False, desc="evaluate")
        super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader, **kwargs)
