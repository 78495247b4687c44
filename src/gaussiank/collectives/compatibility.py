"""What a collective, a compressor and a wire ask of each other."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from gaussiank.codec import VALUE_CODES, Wire
from gaussiank.compressors import Compressor
from gaussiank.sparse import MAX_NUMEL

from .base import Collective


def require_feedback(collective: Collective, compressor: Compressor) -> None:
    """Raise when a collective may send entries back and the compressor's rest is kept by nobody.

    Raises:
        ValueError: so it is.
    """
    if not compressor.keeps_rest and collective.rejects(bounded=compressor.capacity(1, 2) is not None):
        raise ValueError(
            f"collective must send nothing back to a compressor without feedback, got {collective} for {compressor}. "
            "Use allgather:ask=true, or a compressor that keeps what comes back."
        )


def fitting_wire(wire: Wire, compressor: Compressor, collective: Collective) -> Wire:
    """Take the index code ``seed`` where every worker knows the indices already; else the wire as it is.

    With it, payloads have one size, and values that vary in theirs are sent as ``bf16``: of random entries not much
    could be saved.

    Raises:
        ValueError: the wire is ``seed``, and the compressor draws otherwise or the collective needs indices.

    Example:
        >>> from gaussiank.compressors import RandomK
        >>> from gaussiank.collectives import AllGather, Split
        >>> str(fitting_wire(Wire(), RandomK(shared=True), AllGather()))
        'seed+bf16'
        >>> str(fitting_wire(Wire(), RandomK(shared=True), Split()))
        'rice+bf16-rice'
    """
    if wire.index == "seed" and not compressor.draws_alike:
        raise ValueError(
            f"wire must send the indices of {compressor}, got {wire}. "
            "Take rice in place of seed, or the compressor randomk:shared=true without max_bytes."
        )
    if wire.index == "seed" and not collective.sends_values_alone:
        raise ValueError(
            f"wire must send its indices with {collective}, got {wire}. "
            "Take rice in place of seed, or the collective allgather or leader."
        )
    if compressor.draws_alike and collective.sends_values_alone:
        return Wire("seed", VALUE_CODES[wire.values].plain or wire.values, wire.rounding)
    return wire


def entries_within(
    max_bytes: int, collective: Collective, wire: Wire, parameters: Iterable[Tensor], world_size: int, *, layers: bool
) -> int:
    """Return how many entries may be chosen, so that no message from one worker to another is longer than a budget.

    It holds wherever the entries lie and however the parameters are put in buckets: the number is that for a vector of
    all parameters, and a message of a shorter one is not longer.

    Args:
        max_bytes: the budget.
        collective: how workers agree.
        wire: how entries travel.
        parameters: of the model.
        world_size: number of workers.
        layers: whether entries are chosen in each parameter by itself; all of them may be in one message.

    Raises:
        ValueError: not even one fits.

    Example:
        >>> from gaussiank.collectives import AllGather
        >>> wire, parameters = Wire("raw", "fp32"), [torch.zeros(500), torch.zeros(600)]
        >>> entries_within(20 + 8 * 10, AllGather(), wire, parameters, 4, layers=False)
        10
    """
    held = [parameter for parameter in parameters if parameter.numel()]
    dtype = torch.float64 if any(parameter.dtype == torch.float64 for parameter in held) else torch.float32
    numel = max(1, min(MAX_NUMEL, sum(parameter.numel() for parameter in held)))
    times = max(1, len(held)) if layers else 1

    def longest(k: int) -> int:
        return collective.message_bytes(min(k * times, numel), numel, world_size, wire, dtype)

    least = longest(1)
    if max_bytes < least:
        raise ValueError(
            f"max_bytes must be at least {least}, the longest message of {type(collective).__name__} with one entry"
            f"{' of each parameter' if layers else ''}, got {max_bytes}. Raise it, or take another collective."
        )
    low, high = 1, numel
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if longest(middle) <= max_bytes else (low, middle - 1)
    return low
