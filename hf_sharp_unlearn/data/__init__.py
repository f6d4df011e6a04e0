"""From samples to micro-batches: forget and retain set, what sits at which position of a run, loaders, images, and the
names under which a command line finds tables and models. Nothing here computes a loss or a gradient.
"""

from .bad_rows import bad_rows, without_rows
from .caches import leave_cache, use_cache_of
from .classes import Renumbered, class_order, classes_of, inner_of, judges_samples, problem_of_model
from .configs import reads_forward_only
from .contents import contents_of, shared
from .hub_id import hub_id
from .images import CropFlip, ImagesInMemory, cached_images
from .loading import SeededDataset, StreamDataset, sized
from .model_files import model_fingerprint
from .sampling import Pass, Slot, StreamBatchSampler, stream_sampler
from .sets import (
    COUNTS,
    count_items,
    evaluation_sets,
    rows_of,
    select_rows,
    split_forget,
    targets_of,
    transform_of,
)
from .sources import (
    FromConfig,
    Processed,
    check_classes_fit,
    collator_for,
    load_data,
    load_model,
    preparation_of,
    prepare,
    problem_of_source,
    processing_class_of,
)
from .streams import Streams, dataset_of, length_grouped, pins_memory
from .tables import fingerprint, forget_rows, is_hub_id, read_table
from .texts import unmoved_by_padding

__all__ = [
    "COUNTS",
    "CropFlip",
    "FromConfig",
    "ImagesInMemory",
    "Pass",
    "Processed",
    "Renumbered",
    "SeededDataset",
    "Slot",
    "StreamBatchSampler",
    "StreamDataset",
    "Streams",
    "bad_rows",
    "cached_images",
    "check_classes_fit",
    "class_order",
    "classes_of",
    "collator_for",
    "contents_of",
    "count_items",
    "dataset_of",
    "evaluation_sets",
    "fingerprint",
    "forget_rows",
    "hub_id",
    "inner_of",
    "is_hub_id",
    "leave_cache",
    "judges_samples",
    "length_grouped",
    "load_data",
    "load_model",
    "model_fingerprint",
    "pins_memory",
    "preparation_of",
    "prepare",
    "problem_of_model",
    "problem_of_source",
    "processing_class_of",
    "read_table",
    "reads_forward_only",
    "rows_of",
    "select_rows",
    "shared",
    "sized",
    "split_forget",
    "stream_sampler",
    "targets_of",
    "transform_of",
    "without_rows",
    "use_cache_of",
    "unmoved_by_padding",
]
