"""Saving for others: the model card and what it knows, the commitment to the forget set, arguments without secrets,
pushes to the Hub and what history keeps. Nothing here trains or measures.
"""

from .card_facts import RunFacts, training_arguments
from .commitment import check_commitment, forget_commitment
from .hub import PushError, check_folder, erase, make_repo, push_folder, remains
from .model_card import REPORT_FOLDER
from .publishable import left_out, shareable_files
from .publishing import CardKeeper, check_push, copy_for_push, failures, push_checkpoint, upload
from .saving import check_saveable, complete_saved, state_to_save
from .shareable import shareable

__all__ = [
    "CardKeeper",
    "PushError",
    "REPORT_FOLDER",
    "RunFacts",
    "check_commitment",
    "check_folder",
    "check_push",
    "check_saveable",
    "complete_saved",
    "copy_for_push",
    "erase",
    "failures",
    "forget_commitment",
    "left_out",
    "make_repo",
    "push_checkpoint",
    "push_folder",
    "remains",
    "shareable",
    "shareable_files",
    "state_to_save",
    "training_arguments",
    "upload",
]
