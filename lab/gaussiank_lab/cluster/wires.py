"""Bits an entry has on the wire, for each codec that the cost model chooses from."""

from __future__ import annotations

from gaussiank_lab.sim import RAW, Curve, Wire, fixed_bits

DENSITIES = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)
COMPACT_HEADER_BYTES = 20
MAGNITUDES_HEADER_BYTES = 6
MAGNITUDE_BITS = 7.0
"""Of a value in ``bf16-rice``: 6 to 7.4 in real selections at densities of 0.0001 to 0.01, 9 at 0.1 (docs/wire.md)."""


def rice_bits(density: float) -> float:
    """Return the most bits that the code `rice` takes for an index.

    The bound, not the mean: messages have room for it. ``min_r (r + 1) + gap / 2**r``, and 6 bits a block.

    Example:
        >>> [round(rice_bits(density), 1) for density in (0.01, 0.001, 0.0001)]
        [8.6, 12.0, 15.3]
    """
    gap = 1 / density - 1
    return min(r + 1 + gap / 2.0**r for r in range(32)) + 6 / 64


RICE = Curve.of((rho, rice_bits(rho)) for rho in DENSITIES)

WIRES: dict[str, Wire] = {
    wire.name: wire
    for wire in (
        RAW,
        Wire("rice+bf16", 16, RICE, COMPACT_HEADER_BYTES),
        Wire("rice+bf16-rice", MAGNITUDE_BITS, RICE, COMPACT_HEADER_BYTES + MAGNITUDES_HEADER_BYTES, 16),
        Wire("chunks+bf16", 16, fixed_bits(16.2), COMPACT_HEADER_BYTES),
    )
}
"""Name, as the codec takes it -> bits. ``rice`` is packed on a CPU; ``chunks``, 16-bit offsets, on a GPU too."""
