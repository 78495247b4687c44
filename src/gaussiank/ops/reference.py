"""Every op in plain PyTorch, on any device: the specification, and the fallback of every faster backend.

Arguments have been checked before, in ``dispatch``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gaussiank.sparse import SparseGradient


class Moments(NamedTuple):
    """Moments of a vector, each a 0-d tensor on its device.

    Attributes:
        mean: mean of u.
        std: standard deviation of u, unbiased (divisor ``numel - 1``).
        mean_abs: mean of |u|.
        max_abs: largest |u|; NaN when there is one in u.
        finite: bool, whether no entry is infinite or NaN.
    """

    mean: Tensor
    std: Tensor
    mean_abs: Tensor
    max_abs: Tensor
    finite: Tensor


class Taken(NamedTuple):
    """Entries that were chosen from a vector, and removed there if that was asked for.

    Attributes:
        indices: int32 ``[kept]`` ascending, without repeats.
        values: ``[kept]`` what stood there.
        hint: small tensor to pass to the next step's call, or None; of an exact selection the 0-d k-th magnitude,
            infinite when that entry is not finite.
    """

    indices: Tensor
    values: Tensor
    hint: Tensor | None = None


class TakenRow(Taken):
    """Entries that a kernel has written to a row too; what that rounds off stays in the vector.

    Attributes:
        row: uint8 ``[bytes]``: what is sent, and ``COUNTER_BYTES`` that are not.
    """

    row: Tensor


class TakenAbove(NamedTuple):
    """The entries of a vector above a threshold, as many as fit.

    Attributes:
        indices: int32 ``[kept]``, ascending.
        values: ``[kept]``, the entries there.
        above: entries above the threshold; larger than ``kept`` when the capacity was too small for all.
        moments: of the accumulated vector, before anything was taken from it.
    """

    indices: Tensor
    values: Tensor
    above: int
    moments: Moments


class Magnitudes(NamedTuple):
    """Entries and their squares by sign and magnitude, on the CPU.

    Attributes:
        counts: int64 ``[2, 256 << bits]``, of the whole vector.
        energy: float64 ``[256 << bits]``, sums of squares; what is infinite, NaN or below 2^-126 has none.
        part_counts: int64 ``[parts, 2, 256 << part_bits]``.
        part_energy: float64 ``[parts, 256 << part_bits]``.
    """

    counts: Tensor
    energy: Tensor
    part_counts: Tensor
    part_energy: Tensor


def accumulate(residual: Tensor, grad: Tensor, out: Tensor) -> Tensor:
    """Write ``residual + grad`` to ``out``; 12 bytes an element move for float32.

    Args:
        residual: float ``[numel]``, what earlier steps did not send. Not modified.
        grad: float ``[numel]``, any supported dtype; converted in the same pass. Not modified.
        out: ``[numel]`` in the residual's dtype; may be ``residual`` itself.

    Returns:
        ``out``.

    Example:
        >>> accumulate(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5]), out=torch.empty(2))
        tensor([1.5000, 2.5000])
    """
    return torch.add(residual, grad, out=out)


def select_topk(accumulated: Tensor, k: int) -> Tensor:
    """Select exactly the ``k`` entries of largest magnitude; of equal ones the lowest index wins.

    The k-th magnitude comes from ``torch.topk``, whose choice among equals is undefined; entries equal to it are
    therefore chosen anew, from the front. Infinities and NaN count as larger than every finite entry. No host
    synchronisation on accelerators.

    Args:
        accumulated: float ``[numel]``. Not modified.
        k: entries to select, 1 to numel.

    Returns:
        int32 ``[k]`` ascending indices.

    Raises:
        ValueError: ``accumulated`` is no flat vector, or ``k`` is out of range.

    Example:
        >>> select_topk(torch.tensor([3.0, -1.0, 2.0, 0.5, -2.0]), k=2)
        tensor([0, 2], dtype=torch.int32)
    """
    magnitude = _capped_magnitude(accumulated)
    values, indices = magnitude.topk(k)
    limit = values[-1]
    larger = values > limit  # sorted, so these are the first ones
    equal = _first_nonzero(magnitude == limit, k)
    place = torch.arange(k, device=accumulated.device) - larger.sum()
    chosen = torch.where(larger, indices, equal[place.clamp_(min=0)])
    return chosen.sort().values.int()


def _first_nonzero(mask: Tensor, limit: int) -> Tensor:
    if mask.device.type in ("cpu", "cuda"):
        return torch.nonzero_static(mask, size=limit).squeeze(1)  # a fixed size needs no synchronisation
    return mask.nonzero().squeeze(1)[:limit]


def chunk_topk(accumulated: Tensor, chunk: int, shares: Tensor) -> Tensor:
    """Select of each chunk of consecutive entries the share of largest magnitude; of equal ones the lowest index wins.

    Infinities and NaN count as larger than every finite entry.

    Args:
        accumulated: float ``[numel]``. Not modified.
        chunk: entries of a chunk, 1 to numel; the last one may be shorter.
        shares: int64 ``[chunks]`` on the CPU, each at most its chunk's entries, not all 0.

    Returns:
        int32 ``[shares.sum()]`` ascending indices.

    Raises:
        ValueError: ``accumulated`` is no flat vector, or ``shares`` does not fit its chunks.

    Example:
        >>> chunk_topk(torch.tensor([3.0, -4.0, 2.0, 0.5]), 2, torch.tensor([1, 1]))
        tensor([1, 2], dtype=torch.int32)
    """
    own = shares.to(accumulated.device)
    magnitude = accumulated.new_full((len(shares), chunk), -1.0)  # a short last chunk is filled up, never chosen
    magnitude.view(-1)[: accumulated.numel()] = _capped_magnitude(accumulated)
    largest = magnitude.topk(int(shares.max()), dim=1).values
    limits = largest.gather(1, (own - 1).clamp_(min=0)[:, None]).masked_fill_(own[:, None] == 0, torch.nan)
    chosen = (magnitude >= limits).view(-1).nonzero().squeeze(1)
    if chosen.numel() > shares.sum():
        chosen = _without_surplus(chosen, magnitude, limits, own)
    return chosen.int()


def _without_surplus(chosen: Tensor, magnitude: Tensor, limits: Tensor, shares: Tensor) -> Tensor:
    """Drop what ties with a chunk's limit beyond its share, from the chunk's end."""
    chunk = magnitude.shape[1]
    place = torch.div(chosen, chunk, rounding_mode="floor")
    equal = magnitude.view(-1)[chosen] == limits[place, 0]
    larger = torch.zeros_like(shares).index_add_(0, place, (~equal).long())
    before = torch.zeros_like(shares).index_add_(0, place, equal.long()).cumsum(0).roll(1)
    before[0] = 0
    rank = equal.cumsum(0) - before[place]  # 1 for the first of its chunk that ties
    return chosen[~equal | (rank <= (shares - larger)[place])]


def topk(accumulated: Tensor, k: int, hint: Tensor | None = None) -> Taken:
    """Select exactly the ``k`` entries of largest magnitude, and return the hint that makes the next call faster.

    The choice is that of ``select_topk``; the hint changes the time alone.

    Args:
        accumulated: float ``[numel]``. Not modified.
        k: entries to select, 1 to numel.
        hint: 0-d tensor, what the last call on this vector returned, or None. Any value gives the same result.

    Returns:
        Indices, values and the next hint.

    Raises:
        ValueError: ``accumulated`` is no flat vector, ``k`` is out of range, or ``hint`` is no 0-d floating tensor.

    Example:
        >>> topk(torch.tensor([3.0, -1.0, 2.0, 0.5]), k=2)
        Taken(indices=tensor([0, 2], dtype=torch.int32), values=tensor([3., 2.]), hint=tensor(2.))
    """
    indices = select_topk(accumulated, k)
    values = accumulated[indices]
    return Taken(indices, values, _capped_magnitude(values).amin())


def _capped_magnitude(vector: Tensor) -> Tensor:
    return vector.abs().nan_to_num_(nan=torch.inf, posinf=torch.inf)


def accumulate_topk(
    grad: Tensor, residual: Tensor, k: int, hint: Tensor | None = None, *, out: Tensor | None = None
) -> Taken:
    """Add ``grad`` to ``residual``, take exactly the ``k`` largest entries of the sum, and leave the rest.

    ``out_after + taken == residual_before + grad``, bit for bit. The k are those of ``select_topk``: of equal
    magnitudes the lowest index wins, and infinities and NaN, equal to each other, are above every finite entry.

    Args:
        grad: float ``[numel]``; bfloat16 and float16 are converted in the same pass. Not modified.
        residual: float32 ``[numel]``, float64 for a float64 ``grad``. Not modified, unless it is ``out``.
        k: entries to take, 1 to numel.
        hint: 0-d tensor, what the last step's call returned, or None. A bad one costs time, never the result.
        out: where the sum goes, with zeros at the taken entries; ``residual`` itself (the default), or a buffer that
            shares no memory with it.
        row: of ``k`` slots; where a kernel can, it writes the payload too, and leaves in ``out`` what that rounds off.

    Returns:
        Indices, values and the next hint; a ``TakenRow`` if a row was written.

    Raises:
        ValueError: a dtype, device, shape or length does not fit, ``k`` is out of range, or buffers overlap.

    Example:
        >>> residual = torch.tensor([1.0, 0.0, -3.0, 0.5])
        >>> accumulate_topk(torch.tensor([1.0, 1.0, 1.0, 1.0]), residual, k=2)
        Taken(indices=tensor([0, 2], dtype=torch.int32), values=tensor([ 2., -2.]), hint=tensor(2.))
        >>> residual
        tensor([0.0000, 1.0000, 0.0000, 1.5000])
    """
    out = accumulate(residual, grad, out=residual if out is None else out)
    taken = topk(out, k)
    out[taken.indices] = 0
    return taken


def accumulate_threshold(
    grad: Tensor, residual: Tensor, threshold: float, capacity: int, *, out: Tensor | None = None
) -> TakenAbove:
    """Add ``grad`` to ``residual``, take the entries of the sum above ``threshold``, and measure the sum on the way.

    ``out_after + taken == residual_before + grad``, bit for bit: entries above the threshold that find no room stay in
    ``out`` like all the rest. Infinities and NaN count as infinite.

    Args:
        grad: float ``[numel]``; bfloat16 and float16 are converted in the same pass. Not modified.
        residual: float32 ``[numel]``, float64 for a float64 ``grad``. Not modified, unless it is ``out``.
        threshold: magnitude limit; strictly larger entries are taken. A negative one takes all.
        capacity: most entries to take, 1 to numel; the ones of lowest index are.
        out: where the sum goes, with zeros at the taken entries; ``residual`` itself (the default), or a buffer that
            shares no memory with it.

    Returns:
        Indices, values, the count above the threshold, and the moments of the sum.

    Raises:
        ValueError: a dtype, device, shape or length does not fit, ``threshold`` is NaN, ``capacity`` is out of range,
            or buffers overlap.

    Example:
        >>> residual = torch.tensor([1.0, 0.0, -3.0, 0.5])
        >>> taken = accumulate_threshold(torch.ones(4), residual, threshold=1.0, capacity=2)
        >>> taken.indices.tolist(), taken.above, residual.tolist()
        ([0, 2], 3, [0.0, 1.0, 0.0, 1.5])
    """
    out = accumulate(residual, grad, out=residual if out is None else out)
    fit = moments(out)
    above = (_capped_magnitude(out) > threshold).nonzero().squeeze(1)
    indices = above[:capacity].int()
    values = out[indices]
    out[indices] = 0
    return TakenAbove(indices, values, above.numel(), fit)


def select_above(accumulated: Tensor, threshold: float) -> Tensor:
    """Select the entries whose magnitude is strictly above ``threshold``.

    Args:
        accumulated: float ``[numel]``. Not modified.
        threshold: magnitude limit; a larger value selects fewer.

    Returns:
        int32 ``[kept]`` ascending indices.

    Example:
        >>> select_above(torch.tensor([3.0, -1.0, 2.0, -2.5]), 1.0)
        tensor([0, 2, 3], dtype=torch.int32)
    """
    return (accumulated.abs() > threshold).nonzero().squeeze(1).int()


def count_above(magnitude: Tensor, threshold: float) -> int:
    """Count the entries of ``magnitude`` above ``threshold``; waits for the device.

    Example:
        >>> count_above(torch.tensor([3.0, 1.0, 2.0]), 1.0)
        2
    """
    return int(torch.count_nonzero(magnitude > threshold))


def moments(accumulated: Tensor) -> Moments:
    """Compute mean, unbiased standard deviation, mean |u| and max |u| of a float ``[numel]`` vector; is it finite?

    Example:
        >>> [round(float(m), 3) for m in moments(torch.tensor([1.0, -1.0, 3.0]))]
        [1.0, 2.0, 1.667, 3.0, 1.0]
    """
    if accumulated.numel() == 1:
        magnitude = accumulated.abs()[0]
        zero, finite = torch.zeros_like(magnitude), torch.isfinite(magnitude)
        return Moments(accumulated[0].clone(), zero, magnitude, magnitude, finite)
    std, mean = torch.std_mean(accumulated)
    low, high = torch.aminmax(accumulated)  # both carry a NaN on
    max_abs = torch.maximum(-low, high).abs()  # no negative zero
    return Moments(mean, std, accumulated.abs().mean(), max_abs, torch.isfinite(max_abs))


def all_finite(vector: Tensor) -> Tensor:
    """Tell whether no entry is infinite or NaN, as a 0-d bool tensor, in one pass without a copy.

    Example:
        >>> bool(all_finite(torch.tensor([1.0, float("nan")])))
        False
    """
    if vector.numel() == 0:
        return torch.ones((), dtype=torch.bool, device=vector.device)
    low, high = torch.aminmax(vector)  # both carry a NaN on
    return torch.isfinite(low) & torch.isfinite(high)


def nonfinite_indices(vector: Tensor, limit: int) -> Tensor:
    """Find the first ``limit`` infinite or NaN entries, as ascending int32 indices.

    Example:
        >>> nonfinite_indices(torch.tensor([1.0, float("inf"), float("nan")]), limit=1)
        tensor([1], dtype=torch.int32)
    """
    return (~torch.isfinite(vector)).nonzero().squeeze(1)[:limit].int()


def scatter_mean(parts: Sequence[SparseGradient], out: Tensor) -> Tensor:
    """Write the mean of P sparse vectors to a dense one, adding them in the given order.

    Repeated indices across parts add up; the fixed order makes the result the same to the bit on every worker.

    Args:
        parts: one sparse gradient for each worker, in rank order; any of them may be empty.
        out: float32 or float64 ``[numel]``; overwritten.

    Returns:
        Whether all of the mean is finite, as a 0-d bool tensor.

    Example:
        >>> one = SparseGradient(torch.tensor([0, 2], dtype=torch.int32), torch.tensor([5.0, 7.0]), 4)
        >>> two = SparseGradient(torch.arange(4, dtype=torch.int32), torch.tensor([-1.0, -2.0, -3.0, -4.0]), 4)
        >>> mean = torch.empty(4)
        >>> scatter_mean([one, two], mean), mean
        (tensor(True), tensor([ 2., -1.,  2., -2.]))
    """
    out.zero_()
    for part in parts:
        out.index_add_(0, part.indices, part.values)
    out.div_(len(parts))
    return all_finite(out[torch.cat([part.indices for part in parts])])


def union(parts: Sequence[SparseGradient]) -> SparseGradient:
    """Add P sparse vectors up, in the given order, to one sparse vector with the indices of all.

    The fixed order makes the sums the same to the bit on every worker, and equal to those of ``scatter_mean``.

    Args:
        parts: sparse gradients of one length and dtype, in rank order; any of them may be empty.

    Returns:
        Their sum; an index that any part has is in it, even where the sum is zero.

    Raises:
        ValueError: there are no parts, or they are not alike.

    Example:
        >>> one = SparseGradient(torch.tensor([0, 2], dtype=torch.int32), torch.tensor([5.0, 7.0]), 4)
        >>> two = SparseGradient(torch.tensor([2, 3], dtype=torch.int32), torch.tensor([1.0, 2.0]), 4)
        >>> both = union([one, two])
        >>> both.indices.tolist(), both.values.tolist()
        ([0, 2, 3], [5.0, 8.0, 2.0])
    """
    indices, places = torch.unique(torch.cat([part.indices for part in parts]), return_inverse=True)
    values = parts[0].values.new_zeros(indices.numel())
    for part, place in zip(parts, places.split([part.kept for part in parts]), strict=True):
        values.index_add_(0, place, part.values)
    return SparseGradient(indices, values, parts[0].numel)


_REFINED = 2  # rounds of Lloyd's method


def two_level_scale(magnitudes: Tensor, weights: Tensor) -> Tensor:
    """Fit a scale to each block of magnitudes, each of which will stand for one scale or for two.

    The least-squares fit ``sum(magnitude * multiple) / sum(multiple**2)``, by two rounds of Lloyd's method from three
    quarters of the mean. Sums of float32 magnitudes are exact, in whatever order, while a block spans less than 2^22.

    Args:
        magnitudes: float64 ``[blocks, block]``, finite.
        weights: float64, 1, and 0 where there is no value; one at least in each block.

    Returns:
        float64 ``[blocks, 1]``.

    Example:
        >>> two_level_scale(torch.tensor([[1.0, 1.0, 2.0, 2.0]]).double(), torch.ones(1, 4).double()).item()
        1.0
    """
    scale = 0.75 * magnitudes.sum(1, keepdim=True) / weights.sum(1, keepdim=True)
    for _ in range(_REFINED):
        multiples = two_level_multiples(magnitudes, scale) * weights
        scale = (magnitudes * multiples).sum(1, keepdim=True) / multiples.square().sum(1, keepdim=True)
    return scale


def two_level_multiples(magnitudes: Tensor, scale: Tensor) -> Tensor:
    """Return how many scales each magnitude stands for: two from one and a half on, else one.

    Example:
        >>> two_level_multiples(torch.tensor([[0.0, 1.4, 1.5, 9.0]]), torch.tensor([[1.0]])).tolist()
        [[1.0, 1.0, 2.0, 2.0]]
    """
    return torch.where(magnitudes >= 1.5 * scale, 2.0, 1.0).double()
