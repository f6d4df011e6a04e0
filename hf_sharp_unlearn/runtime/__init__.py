"""What torch and transformers lack: generator states, snapshots of buffers, collectives over gradients, batches
as a model takes them. Nothing here knows of unlearning, of streams or of methods.
"""

from .buffers import Buffers, evaluating
from .distributed import all_reduce_mean, all_true, broadcast_first, fill_missing
from .inputs import Inputs
from .rng import RngState, derive_seed, isolated_rng, seed_all, seed_host

__all__ = [
    "Buffers",
    "Inputs",
    "RngState",
    "all_reduce_mean",
    "all_true",
    "broadcast_first",
    "derive_seed",
    "evaluating",
    "fill_missing",
    "isolated_rng",
    "seed_all",
    "seed_host",
]
