"""From tensors to sketches: what the recorder computes on the training's own device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaussiank.lab.study.sketch import LAYER_BITS, MANTISSA_BITS, Counts, Floats, Sketch

_GROUP_NUMEL = 1 << 22  # entries handled at once: bounds the memory to some 100 MB
_GROUP_LAYERS = 256


def sketch_of(vector: Tensor) -> Sketch:
    """Return the sketch of a flat vector; what is not float32 is converted.

    Args:
        vector: float ``[numel]``. Not modified.

    Example:
        >>> sketch_of(torch.tensor([1.0, float("nan")])).nonfinite
        1
    """
    return sketch_layers(vector, [vector.numel()])[0]


def sketch_layers(vector: Tensor, numels: Sequence[int]) -> tuple[Sketch, list[Sketch]]:
    """Sketch a vector as a whole, and coarsely (``LAYER_BITS``) each of the parts that lie end to end in it.

    All parts of a group are counted in one pass, by adding the part's number to the leading bits of each entry.

    Args:
        vector: float ``[numel]``. Not modified.
        numels: lengths of the parts.

    Returns:
        The sketch of all, and one for each part, in order.
    """
    whole = Sketch.empty()
    layers: list[Sketch] = []
    for start, group in _groups(numels):
        counts, energy = _tables(vector[start : start + sum(group)], group)
        whole += Sketch(counts.sum(axis=0), energy.sum(axis=0))
        coarse_counts, coarse_energy = _fold(counts), _fold(energy)
        layers += [Sketch(coarse_counts[i], coarse_energy[i]) for i in range(len(group))]
    return whole, layers


def _fold(table: NDArray[Any]) -> NDArray[Any]:
    """Join the bins of the last axis to those of ``LAYER_BITS``; only where there is something, a tenth of them."""
    fine = 1 << (MANTISSA_BITS - LAYER_BITS)
    folded = np.zeros((*table.shape[:-1], table.shape[-1] // fine), dtype=table.dtype)
    filled = np.flatnonzero(table.reshape(-1, table.shape[-1]).any(axis=0))
    if filled.size:
        first, last = filled[0] // fine, filled[-1] // fine + 1
        inside = table[..., first * fine : last * fine]
        folded[..., first:last] = sum(inside[..., i::fine] for i in range(fine))
    return folded


def _groups(numels: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """Cut the parts into groups that are handled at once: where each begins, and its parts' lengths."""
    group: list[int] = []
    start = 0
    for numel in numels:
        if group and (len(group) == _GROUP_LAYERS or sum(group) + numel > _GROUP_NUMEL):
            yield start, group
            start += sum(group)
            group = []
        group.append(numel)
    if group:
        yield start, group


def _tables(vector: Tensor, numels: Sequence[int]) -> tuple[Counts, Floats]:
    """Count the entries of each part: int64 ``[parts, 2, bins]`` counts and float64 ``[parts, bins]`` energies."""
    bins = 256 << MANTISSA_BITS
    counts = np.zeros((len(numels), 2, bins), dtype=np.int64)
    energy = np.zeros((len(numels), bins))
    for start in range(0, vector.numel(), _GROUP_NUMEL):  # a part longer than a group is alone, and comes in pieces
        values = vector[start : start + _GROUP_NUMEL].detach().float().contiguous()
        code = (values.view(torch.int32) >> (23 - MANTISSA_BITS)).bitwise_and_(2 * bins - 1)  # sign, exponent, mantissa
        end = numels[0] - start
        for number in range(1, len(numels)):
            code[end : end + numels[number]].add_(2 * bins * number)
            end += numels[number]
        room = 2 * bins * len(numels)
        counts += torch.bincount(code, minlength=room).cpu().numpy().reshape(counts.shape)
        squares = torch.bincount(code, weights=values.double().square_(), minlength=room)
        energy += squares.cpu().numpy().reshape(counts.shape).sum(axis=1)
    energy[:, -(1 << MANTISSA_BITS) :] = 0.0  # infinities and NaN are counted, and have no energy
    energy[:, : 1 << MANTISSA_BITS] = 0.0
    return counts, energy
