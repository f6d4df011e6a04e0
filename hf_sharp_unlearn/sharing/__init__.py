"""Saving for others: the model card and what it knows, the commitment to the forget set, arguments without secrets,
pushes to the Hub and what history keeps. Nothing here trains or measures.
"""

from .card_facts import training_arguments
from .commitment import check_commitment, forget_commitment
from .hub import PushError, check_folder, erase, make_repo, push_folder, remains, shareable_files
from .model_card import REPORT_FOLDER
from .publishing import PublishHooks

__all__ = [
    "PublishHooks",
    "PushError",
    "REPORT_FOLDER",
    "check_commitment",
    "check_folder",
    "erase",
    "forget_commitment",
    "make_repo",
    "push_folder",
    "remains",
    "shareable_files",
    "training_arguments",
]
