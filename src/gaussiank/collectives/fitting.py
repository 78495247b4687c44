"""What a collective, a compressor and a wire ask of each other."""

from __future__ import annotations

from gaussiank.codec import VALUE_CODES, Wire
from gaussiank.compressors import Compressor

from .collective import Collective


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
