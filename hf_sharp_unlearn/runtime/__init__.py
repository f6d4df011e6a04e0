"""What torch and transformers lack: generator states, snapshots of buffers, collectives over gradients, precision,
batches as a model takes them, files and progress bars. Nothing here knows of unlearning, of streams or of methods.
"""

from .buffers import Buffers, evaluating
from .distributed import all_reduce_mean, all_sum, all_true, broadcast_first, fill_missing, on_first
from .files import disk_is_full, free_bytes, full_disk_named, write_text, written_whole
from .inputs import Inputs
from .precision import allowing_tf32, cast_in_force, forget_casts, full_precision
from .progress import draws_bars, progress_bar
from .rng import RngState, derive_seed, isolated_rng, seed_all, seed_host

__all__ = [
    "Buffers",
    "Inputs",
    "RngState",
    "all_reduce_mean",
    "all_sum",
    "all_true",
    "allowing_tf32",
    "broadcast_first",
    "cast_in_force",
    "derive_seed",
    "disk_is_full",
    "draws_bars",
    "evaluating",
    "fill_missing",
    "forget_casts",
    "free_bytes",
    "full_disk_named",
    "full_precision",
    "isolated_rng",
    "on_first",
    "progress_bar",
    "seed_all",
    "seed_host",
    "write_text",
    "written_whole",
]
