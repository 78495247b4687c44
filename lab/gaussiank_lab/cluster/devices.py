"""What selection and decoding cost on devices that nobody could measure here: bytes over memory bandwidth."""

from __future__ import annotations

from gaussiank_lab.sim import Curve, Device

GPU_PASSES = {"topk": 12, "gaussiank": 48, "dgc": 28, "trimmedtopk": 48, "randomk": 12}
"""Bytes that each selection moves for an element: 12 to add the residual and write it back, 4 for each further look.

Top_k in one fused pass; Gaussian_k and RedSync's trimming count above 6 to 9 thresholds; DGC looks twice. Assumed: a
GPU kernel that reaches the memory's bandwidth, as the CPU's does; none has been measured on a GPU.
"""
PUBLISHED_PASSES = {"published-gaussiank": 70, "published-trimmedtopk": 150}
"""Bytes an element of the published torch code of 2019, counted from its operators: each writes a whole vector."""
PUBLISHED_TOPK_S = 12.8e-9
"""Seconds an element of torch.topk in torch 1.1: 25.6 ms for 2,000,000 on a P100 (pytorch issue 22812, July 2019)."""
DGC_SAMPLE = 0.01
"""Share of the vector that DGC sorts to find its threshold."""
GPU_LAUNCH_S = 30e-6
"""A handful of kernel starts. Assumed."""


def gpu(name: str, memory_bytes_s: float) -> Device:
    """Describe a GPU by its memory's bandwidth.

    Entries that are decoded or merged cost a read of the message and a read and write of the vector at a random place,
    64 bytes with the sector that each touches. Assumed.

    Args:
        name: for reports.
        memory_bytes_s: that a copy reaches, bytes a second.
    """
    byte_s = 1 / memory_bytes_s
    select = {key: Curve.linear(GPU_LAUNCH_S, count * byte_s) for key, count in GPU_PASSES.items()}
    for key, count in PUBLISHED_PASSES.items():
        select[key] = Curve.linear(20 * 10e-6, count * byte_s)
    select["published-topk"] = Curve.linear(1e-4, PUBLISHED_TOPK_S)
    select["published-dgc"] = Curve.linear(4e-4, DGC_SAMPLE * PUBLISHED_TOPK_S + 40 * byte_s)
    return Device(
        name,
        select=select,
        encode=Curve.linear(GPU_LAUNCH_S, 16 * byte_s),
        decode=Curve.linear(GPU_LAUNCH_S, 64 * byte_s),
        merge=Curve.linear(10 * GPU_LAUNCH_S, 200 * byte_s),  # a sort of the joined indices
        clear=Curve.linear(5e-6, 4 * byte_s),
        cast=Curve.linear(10e-6, 12 * byte_s),
    )


def cpu(name: str, contention: float) -> Device:
    """Describe one core of the machine that the lab's numbers come from.

    Selection was measured there (AMD EPYC with AVX-512, 2 cores, torch 2.13, 2026-11): exact Top_k 0.156 ms at 1e6,
    4.0 ms at 1e7, 18.5 ms at 5e7 entries; the others as multiples of it in the same run. The rest is assumed.
    """
    topk = Curve.of([(1e3, 2e-5), (1e5, 4e-5), (1e6, 1.56e-4), (1e7, 4.0e-3), (5e7, 1.85e-2)])
    return Device(
        name,
        select={
            "topk": topk,
            "gaussiank": topk.times(12),
            "dgc": topk.times(8),
            "trimmedtopk": topk.times(30),
            "randomk": topk.times(2),
        },
        encode=Curve.linear(2e-5, 3e-9),
        decode=Curve.linear(2e-5, 4e-9),
        merge=Curve.linear(1e-4, 4e-8),
        clear=Curve.linear(1e-6, 0.1e-9),
        cast=Curve.linear(1e-5, 0.6e-9),
        contention=contention,
    )
