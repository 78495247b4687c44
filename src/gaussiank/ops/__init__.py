"""What is computed on one device; nothing in here communicates."""

from .reference import (
    RESIDUAL_DTYPES,
    Moments,
    accumulate,
    all_finite,
    count_above,
    moments,
    nonfinite_indices,
    require_k,
    require_vector,
    scatter_mean,
    select_above,
    select_topk,
)

__all__ = [
    "RESIDUAL_DTYPES",
    "Moments",
    "accumulate",
    "all_finite",
    "count_above",
    "moments",
    "nonfinite_indices",
    "require_k",
    "require_vector",
    "scatter_mean",
    "select_above",
    "select_topk",
]
