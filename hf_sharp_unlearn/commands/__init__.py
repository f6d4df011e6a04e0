"""The commands of `sharp-unlearn` that look at models: one file each, `add` for its options and `run` for its work."""

from . import evaluate, landscape, memorize

COMMANDS = {"evaluate": evaluate, "memorize": memorize, "landscape": landscape}

__all__ = ["COMMANDS"]
