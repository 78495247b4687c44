"""What is computed on one device; nothing in here communicates."""

from .backend import Backends, backends, use_backend
from .buffers import residual_buffer
from .checks import RESIDUAL_DTYPES, require_k, require_vector
from .dispatch import (
    accumulate_threshold,
    accumulate_topk,
    count_above,
    moments,
    scatter_mean,
    select_above,
    select_topk,
    topk,
    union,
)
from .magnitudes import magnitudes
from .reference import accumulate, all_finite, nonfinite_indices
from .results import Magnitudes, Moments, Taken, TakenAbove

__all__ = [
    "RESIDUAL_DTYPES",
    "Backends",
    "Magnitudes",
    "Moments",
    "Taken",
    "TakenAbove",
    "accumulate",
    "accumulate_threshold",
    "accumulate_topk",
    "all_finite",
    "backends",
    "count_above",
    "magnitudes",
    "moments",
    "nonfinite_indices",
    "require_k",
    "require_vector",
    "residual_buffer",
    "scatter_mean",
    "select_above",
    "select_topk",
    "topk",
    "union",
    "use_backend",
]
