"""Histograms of a vector by the leading bits of its entries: the plain form, and the choice of a kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from . import native
from .dispatch import kernels
from .reference import Magnitudes

_GROUP_NUMEL = 1 << 22  # entries handled at once: bounds the memory to some 100 MB
_GROUP_PARTS = 256
_EXPONENTS = 256


def magnitudes(vector: Tensor, numels: Sequence[int], bits: int, part_bits: int) -> Magnitudes:
    """Count the entries of a vector, and of each of the parts that lie end to end in it, by their leading bits.

    A bin is sign, exponent and the first ``bits`` of the mantissa of a float32; other dtypes are converted. One pass:
    on the CPU in a kernel that needs no memory beside the tables, elsewhere by ``torch.bincount``.

    Args:
        vector: float ``[numel]``, on any device. Not modified.
        numels: lengths of the parts, together ``numel``.
        bits: of the mantissa, for the whole vector, 0 to 7.
        part_bits: of the mantissa, for each part, at most ``bits``.

    Raises:
        ValueError: the parts do not make up the vector, or ``part_bits`` is above ``bits``.

    Example:
        >>> found = magnitudes(torch.tensor([1.0, -1.5, 1.0]), [2, 1], bits=1, part_bits=0)
        >>> found.counts[:, 254:256].tolist(), found.part_counts[:, 0, 127].tolist()
        ([[2, 0], [0, 1]], [1, 1])
    """
    if vector.dim() != 1 or sum(numels) != vector.numel():
        raise ValueError(f"numels must add up to the {vector.numel()} entries, got {sum(numels)}. Give every part.")
    if not 0 <= part_bits <= bits <= 7:
        raise ValueError(f"bits must be in [part_bits, 7], got {bits} and part_bits {part_bits}. Parts are coarser.")
    if kernels(vector) is not None:
        return native.magnitudes(vector.detach().float().contiguous(), numels, _empty(len(numels), bits, part_bits))
    return reference_magnitudes(vector, numels, bits, part_bits)


def reference_magnitudes(vector: Tensor, numels: Sequence[int], bits: int, part_bits: int) -> Magnitudes:
    """Count in plain PyTorch, on the vector's device: parts are told apart by a number in front of the leading bits."""
    found = _empty(len(numels), bits, part_bits)
    done = 0
    for start, group in _groups(numels):
        counts, energy = _tables(vector[start : start + sum(group)], group, bits)
        found.counts.add_(counts.sum(dim=0))
        found.energy.add_(energy.sum(dim=0))
        these = slice(done, done + len(group))
        found.part_counts[these] = counts.view(len(group), 2, _EXPONENTS << part_bits, -1).sum(dim=3)
        found.part_energy[these] = energy.view(len(group), _EXPONENTS << part_bits, -1).sum(dim=2)
        done += len(group)
    return found


def _empty(parts: int, bits: int, part_bits: int) -> Magnitudes:
    fine, coarse = _EXPONENTS << bits, _EXPONENTS << part_bits
    return Magnitudes(
        torch.zeros(2, fine, dtype=torch.int64, device="cpu"),
        torch.zeros(fine, dtype=torch.float64, device="cpu"),
        torch.zeros(parts, 2, coarse, dtype=torch.int64, device="cpu"),
        torch.zeros(parts, coarse, dtype=torch.float64, device="cpu"),
    )


def _groups(numels: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """Cut the parts into groups that are handled at once: where each begins, and its parts' lengths."""
    group: list[int] = []
    start = 0
    for numel in numels:
        if group and (len(group) == _GROUP_PARTS or sum(group) + numel > _GROUP_NUMEL):
            yield start, group
            start += sum(group)
            group = []
        group.append(numel)
    if group:
        yield start, group


def _tables(vector: Tensor, numels: Sequence[int], bits: int) -> tuple[Tensor, Tensor]:
    """Count the entries of each part: int64 ``[parts, 2, bins]`` counts and float64 ``[parts, bins]`` energies."""
    bins = _EXPONENTS << bits
    counts = torch.zeros(len(numels), 2, bins, dtype=torch.int64, device="cpu")
    energy = torch.zeros(len(numels), bins, dtype=torch.float64, device="cpu")
    for start in range(0, vector.numel(), _GROUP_NUMEL):  # a part longer than a group is alone, and comes in pieces
        values = vector[start : start + _GROUP_NUMEL].detach().float().contiguous()
        code = (values.view(torch.int32) >> (23 - bits)).bitwise_and_(2 * bins - 1)  # sign, exponent, mantissa
        end = numels[0] - start
        for number in range(1, len(numels)):
            code[end : end + numels[number]].add_(2 * bins * number)
            end += numels[number]
        room = 2 * bins * len(numels)
        counts += torch.bincount(code, minlength=room).cpu().view(counts.shape)
        squares = torch.bincount(code, weights=values.double().square_(), minlength=room)
        energy += squares.cpu().view(counts.shape).sum(dim=1)
    energy[:, -(1 << bits) :] = 0.0  # infinities and NaN are counted, and have no energy
    energy[:, : 1 << bits] = 0.0
    return counts, energy
