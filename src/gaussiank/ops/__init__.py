"""What is computed on one device; nothing in here communicates."""

from .accelerator import prepare
from .dispatch import (
    RESIDUAL_DTYPES,
    Backends,
    accumulate_threshold,
    accumulate_topk,
    backends,
    chunk_topk,
    count_above,
    mean_of_rows,
    moments,
    require_accumulation,
    require_k,
    require_vector,
    scatter_mean,
    select_above,
    select_topk,
    topk,
    union,
    use_backend,
)
from .histogram import magnitudes
from .narrow import add_narrow, add_randomly, round_randomly
from .native import residual_buffer
from .reference import Magnitudes, Moments, Taken, TakenAbove, TakenRow, accumulate, all_finite, nonfinite_indices
from .rows import NarrowMean, RowFormat

__all__ = [
    "RESIDUAL_DTYPES",
    "Backends",
    "Magnitudes",
    "Moments",
    "NarrowMean",
    "RowFormat",
    "Taken",
    "TakenAbove",
    "TakenRow",
    "accumulate",
    "accumulate_threshold",
    "accumulate_topk",
    "add_narrow",
    "add_randomly",
    "all_finite",
    "backends",
    "chunk_topk",
    "count_above",
    "magnitudes",
    "mean_of_rows",
    "moments",
    "nonfinite_indices",
    "prepare",
    "require_accumulation",
    "require_k",
    "require_vector",
    "residual_buffer",
    "round_randomly",
    "scatter_mean",
    "select_above",
    "select_topk",
    "topk",
    "union",
    "use_backend",
]
