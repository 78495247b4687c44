"""The sketches of all layers of a vector in one record: one encoding for all of them costs a tenth of one for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gaussiank_lab.study.sketch import OCTAVES, Counts, Floats, Sketch, pack, unpack


def table_record(counts: Counts, energy: Floats) -> dict[str, Any]:
    """Return JSON values of the sketches of layers; ``layer_sketch`` reads them.

    Layers share a range of bins, which reaches ``OCTAVES`` octaves below the largest entry of each. Otherwise the
    values are those of ``Sketch.as_record``.

    Args:
        counts: int64 ``[layers, 2, 256 << bits]``.
        energy: float64 ``[layers, 256 << bits]``.

    Example:
        >>> import torch
        >>> from gaussiank import ops
        >>> found = ops.magnitudes(torch.tensor([3.0, -1.0, 2.0, 0.0]), [1, 3], 4, 1)
        >>> record = table_record(found.part_counts.numpy(), found.part_energy.numpy())
        >>> layer_sketch(record, 1).numel, layer_sketch(record, 1).square_sum
        (3, 5.0)
    """
    one = energy.shape[1] // 256
    counts = counts.astype(np.uint32)
    both = counts[:, 0] + counts[:, 1]
    filled = np.flatnonzero(both[:, one:-one].any(axis=0))
    first = last = 0
    if filled.size:
        first, last = int(filled[0]) + one, int(filled[-1]) + one + 1
        tops = last - both[:, last - 1 : first - 1 : -1].astype(bool).argmax(axis=1)  # ends of the layers that have any
        first = max(first, int(tops.min()) - OCTAVES * one)
    sums = energy.sum(axis=1)
    shares = energy[:, first:last] / np.where(sums > 0, sums, 1.0)[:, None]
    return {
        "bits": one.bit_length() - 1,
        "first": first,
        "plus": pack(counts[:, 0, first:last], "<u4"),
        "minus": pack(counts[:, 1, first:last], "<u4"),
        "energy": pack(shares, "<f4"),
        "square_sum": sums.tolist(),
        "zeros": both[:, :one].sum(axis=1).tolist(),
        "tiny": both[:, one:first].sum(axis=1).tolist(),
        "nonfinite": both[:, -one:].sum(axis=1).tolist(),
    }


def layer_sketch(record: Mapping[str, Any], layer: int) -> Sketch:
    """Return the sketch of one layer of a ``table_record``.

    Raises:
        ValueError: the record is damaged.
    """
    try:
        rows = {key: unpack(record[key], kind) for key, kind in (("plus", "<u4"), ("minus", "<u4"), ("energy", "<f4"))}
        cut = {key: row.reshape(len(record["square_sum"]), -1)[layer] for key, row in rows.items()}
        each = {key: record[key][layer] for key in ("square_sum", "zeros", "tiny", "nonfinite")}
        return Sketch.restore(int(record["bits"]), int(record["first"]), **cut, **each)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise ValueError(f"layers must be what a recorder wrote, got {error!r}. Record the run again.") from None
