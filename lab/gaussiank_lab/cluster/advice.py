"""Whether to compress on a cluster, with what, and why: every candidate simulated, also where inputs are off."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gaussiank_lab.cluster.scenario import ScenarioSetting, Uncertainty
from gaussiank_lab.sim import (
    HEADER_BYTES,
    RAW,
    Cluster,
    Curve,
    Device,
    Link,
    Method,
    Scenario,
    Spread,
    WireSize,
    Workload,
    fixed_bits,
    simulate,
)

MEASURED_DENSITIES = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0)
MAGNITUDES_HEADER_BYTES = 6
MAGNITUDE_BITS = 7.0
"""Of a value in ``bf16-rice``: 6 to 7.4 in real selections at densities of 0.0001 to 0.01, 9 at 0.1: results/wire."""


def rice_bits(density: float) -> float:
    """Return the most bits that the code `rice` takes for an index.

    The bound, not the mean: messages have room for it. ``min_r (r + 1) + gap / 2**r``, and 6 bits a block.

    Example:
        >>> [round(rice_bits(density), 1) for density in (0.01, 0.001, 0.0001)]
        [8.6, 12.0, 15.3]
    """
    gap = 1 / density - 1
    return min(r + 1 + gap / 2.0**r for r in range(32)) + 6 / 64


RICE = Curve.of((rho, rice_bits(rho)) for rho in MEASURED_DENSITIES)
CHUNKS12 = Curve.of((rho, 12 + 13 / (4096 * rho)) for rho in sorted((*MEASURED_DENSITIES, 3e-5, 3e-4, 3e-3, 1 / 64)))
"""12 bits an offset, 13 a chunk of 4,096: 12.2 at 1/64, 15.2 at 0.001."""

WIRES: dict[str, WireSize] = {
    wire.name: wire
    for wire in (
        RAW,
        WireSize("rice+bf16", 16, RICE, HEADER_BYTES),
        WireSize("rice+bf16-rice", MAGNITUDE_BITS, RICE, HEADER_BYTES + MAGNITUDES_HEADER_BYTES, 16),
        WireSize("chunks+bf16", 16, fixed_bits(16.2), HEADER_BYTES),
        WireSize("chunks12+bf16", 16, CHUNKS12, HEADER_BYTES),
        WireSize("chunks12+2bit", 2.25, CHUNKS12, HEADER_BYTES),
    )
}
"""Name, as the codec takes it -> bits. ``rice`` is packed on a CPU; ``chunks``, 16-bit offsets, and ``chunks12`` on a
GPU too."""


TWO_BIT = WireSize("rice+2bit", 2.25, RICE, HEADER_BYTES)
"""That of local steps and sparse AdamW: a sign, a bit of magnitude, and scales by blocks."""

LOCAL_EVERY = 10
LOCAL = Method("local steps", "topk", 1 / 16, TWO_BIT, scope="model")
"""``gaussiank.LocalSteps`` as it is by default."""
DILOCO = Method("diloco fp32", "dense")

DENSE = Method("dense fp32", "dense")
DENSE_16 = Method("dense bf16", "dense", value_bytes=2)
DEFAULT_NAME = "topk"
"""What ``gaussiank.compress(model)`` does when nothing else is said."""


def compact_wire(*, accelerator: bool) -> str:
    """Return the name of the smallest wire that is packed where the gradients are."""
    return "chunks+bf16" if accelerator else "rice+bf16-rice"


def default_method(density: float, *, accelerator: bool) -> Method:
    """Return today's default: exact Top_k of each bucket, the compact wire, all-gather."""
    return Method(DEFAULT_NAME, "topk", density, WIRES[compact_wire(accelerator=accelerator)])


def all_methods(density: float, *, accelerator: bool) -> tuple[Method, ...]:
    """Return the methods of the table of ``gaussiank simulate``."""
    topk = default_method(density, accelerator=accelerator)
    collectives = ("split", "tree", "leader", "hierarchical")
    return (
        DENSE,
        DENSE_16,
        topk,
        replace(topk, name="topk raw+fp32", wire=WIRES["raw+fp32"]),
        *(replace(topk, name=f"topk {name}", collective=name) for name in collectives),
        Method("gaussiank", "gaussiank", density, topk.wire, room=4 / 3),  # the top of its band
        Method("dgc", "dgc", density, topk.wire),
        Method("trimmedtopk", "trimmedtopk", density, topk.wire),
    )


DENSITIES = (0.01, 0.005, 0.002, 0.001)
"""Densities to choose from; below 0.001 convergence has not been shown."""
COLLECTIVES = ("allgather", "hierarchical", "split", "tree", "leader")
"""The first loses nothing; the others return to the residual what they cut, the later the more."""
HIERARCHICAL = (
    "hierarchical is refused in a process group of only some workers where init_process_group has a device_id"
)
"""What to know before one takes it: ``gaussiank.comm.groups`` makes groups of nodes, for which NCCL asks all ranks."""
TOLERANCE = 0.03
"""A method that loses less of the gradient is preferred when it is not slower than this share of the best."""
LEAST_GAIN = 1.05
"""A gain below 5 % is not worth another optimizer behaviour."""
DRAWS = 64


@dataclass(frozen=True)
class Candidate:
    """A method, and the seconds of a step that are predicted for it."""

    method: Method
    step_s: float


@dataclass(frozen=True)
class Advice:
    """What to do, and why.

    Attributes:
        compress: whether to compress at all.
        best: the sparse method that is recommended, or would be.
        baseline: the faster of the two dense methods.
        dense: both dense methods.
        gain: seconds of the baseline over those of ``best``.
        low: gain that is exceeded with 90 % probability.
        high: gain that is exceeded with 10 % probability.
        waits_s: seconds of a step that the baseline waits for messages.
        selects_s: seconds of a step that ``best`` spends on selection, encoding and its own waiting.
        pays_below_bits_s: bandwidth of the outermost link below which one of ``ranked`` gains 5 %; 0 when none does at
            any bandwidth that was looked at, infinity when one does at all of them.
        ranked: the fastest candidate of each collective, best first.
    """

    compress: bool
    best: Candidate
    baseline: Candidate
    dense: tuple[Candidate, ...]
    gain: float
    low: float
    high: float
    waits_s: float
    selects_s: float
    pays_below_bits_s: float
    ranked: tuple[Candidate, ...]


def advise(setting: ScenarioSetting, workers: int, density: float | None = None, seed: int = 0) -> Advice:
    """Choose density, codec, collective and scope for Top_k, and compare with the better dense method.

    Among all candidates within 3 % of the fastest, the one that loses least is taken: the highest density, then the
    collective that returns least to the residual. Compressing is recommended when it is predicted to gain 5 %, and to
    gain at all with 90 % probability.

    Args:
        setting: cluster, model and how far their numbers may be off.
        workers: how many.
        density: the only one to consider, or None for ``DENSITIES``.
        seed: of the uncertainty's draws.

    Raises:
        ValueError: workers do not fit the cluster, or a density out of its range.
    """
    scenario = replace(setting.scenario, spread=Spread())  # jitter is the same for all; means decide
    dense = tuple(_timed(scenario, method, workers) for method in (DENSE, DENSE_16))
    baseline = min(dense, key=lambda candidate: candidate.step_s)
    methods = _candidates(workers, DENSITIES if density is None else (density,), accelerator=setting.accelerator)
    timed = [_timed(scenario, method, workers) for method in methods]
    ranked = _best_of_each(timed)
    fastest_s, enough_s = ranked[0].step_s, baseline.step_s / LEAST_GAIN
    limit_s = fastest_s * (1 + TOLERANCE)
    if fastest_s <= enough_s < limit_s:
        limit_s = enough_s
    best = next(candidate for candidate in timed if candidate.step_s <= limit_s)
    low, high = _interval(scenario, best.method, workers, setting.uncertainty, seed)
    gain = baseline.step_s / best.step_s
    alone_s = scenario.workload.alone_s
    return Advice(
        compress=gain >= LEAST_GAIN and low >= 1.0,
        best=best,
        baseline=baseline,
        dense=dense,
        gain=gain,
        low=low,
        high=high,
        waits_s=max(0.0, baseline.step_s - alone_s),
        selects_s=max(0.0, best.step_s - alone_s),
        pays_below_bits_s=_break_even(scenario, [row.method for row in ranked], workers),
        ranked=ranked,
    )


def best_gain(scenario: Scenario, workers: int, densities: Sequence[float], *, accelerator: bool = True) -> float:
    """Return the gain of the fastest setting of Top_k over the better dense method, whatever it loses."""
    return _gain(scenario, _candidates(workers, densities, accelerator=accelerator), workers)


def _candidates(workers: int, densities: Sequence[float], *, accelerator: bool) -> list[Method]:
    """List the methods in the order in which they are preferred."""
    wires = ("raw+fp32", compact_wire(accelerator=accelerator))
    collectives = COLLECTIVES if workers > 1 else COLLECTIVES[:1]
    return [
        Method(f"topk {collective} {wire} {scope}", "topk", density, WIRES[wire], collective, scope)
        for density, collective, wire, scope in itertools.product(
            sorted(densities, reverse=True), collectives, wires, ("bucket", "model")
        )
    ]


def _timed(scenario: Scenario, method: Method, workers: int) -> Candidate:
    return Candidate(method, simulate(scenario, method, workers, traced=1).step_s)


def _best_of_each(timed: Sequence[Candidate]) -> tuple[Candidate, ...]:
    best: dict[str, Candidate] = {}
    for candidate in timed:
        known = best.get(candidate.method.collective)
        if known is None or candidate.step_s < known.step_s:
            best[candidate.method.collective] = candidate
    return tuple(sorted(best.values(), key=lambda candidate: candidate.step_s))


def _gain(scenario: Scenario, methods: Sequence[Method], workers: int) -> float:
    dense_s, sparse_s = (
        min(_timed(scenario, method, workers).step_s for method in group) for group in ((DENSE, DENSE_16), methods)
    )
    return dense_s / sparse_s


def _interval(
    scenario: Scenario, method: Method, workers: int, uncertainty: Uncertainty, seed: int
) -> tuple[float, float]:
    """Return the 10th and 90th percentile of the gain when every number is drawn as uncertain as it is."""
    draws = np.random.default_rng(seed).standard_normal((DRAWS, 4))
    scale = [uncertainty.bandwidth, uncertainty.latency, uncertainty.compute, uncertainty.own]
    gains = [_gain(_scaled(scenario, *np.exp(row).tolist()), [method], workers) for row in draws * scale]
    low, high = np.quantile(gains, [0.1, 0.9])
    return float(low), float(high)


def _scaled(scenario: Scenario, bandwidth: float, latency: float, compute: float, own: float) -> Scenario:
    return Scenario(
        _slower_model(scenario.workload, compute),
        _slower_device(scenario.device, own),
        other_links(scenario.cluster, bandwidth, latency),
        scenario.overlap,
        scenario.spread,
    )


def _slower_model(workload: Workload, factor: float) -> Workload:
    buckets = tuple(replace(bucket, backward_s=bucket.backward_s * factor) for bucket in workload.buckets)
    return replace(
        workload, buckets=buckets, forward_s=workload.forward_s * factor, optimizer_s=workload.optimizer_s * factor
    )


def _slower_device(device: Device, factor: float) -> Device:
    curves = {name: getattr(device, name).times(factor) for name in ("encode", "decode", "merge", "clear", "cast")}
    return replace(
        device,
        select={key: curve.times(factor) for key, curve in device.select.items()},
        exchange={key: seconds * factor for key, seconds in device.exchange.items()},
        **curves,
    )


def other_links(cluster: Cluster, bandwidth: float, latency: float, outermost_only: bool = False) -> Cluster:
    """Return a cluster whose bandwidths, and times of a message, are so many times as large."""

    def other(link: Link) -> Link:
        return replace(
            link,
            bandwidth_bits_s=link.bandwidth_bits_s * bandwidth,
            latency_s=link.latency_s * latency,
            message_s=link.message_s * latency,
        )

    tiers = [
        replace(tier, link=other(tier.link)) if not outermost_only or tier is cluster.tiers[-1] else tier
        for tier in cluster.tiers
    ]
    return replace(cluster, tiers=tuple(tiers))


def _break_even(scenario: Scenario, methods: Sequence[Method], workers: int) -> float:
    """Search the outermost link's bandwidth, from a thousandth to a thousand times, for a gain of 5 %."""

    def worth(exponent: float) -> bool:
        cluster = other_links(scenario.cluster, 10**exponent, 1.0, outermost_only=True)
        return _gain(replace(scenario, cluster=cluster), methods, workers) >= LEAST_GAIN

    low, high = -3.0, 3.0
    if workers == 1 or not worth(low):
        return 0.0
    if worth(high):
        return math.inf
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (middle, high) if worth(middle) else (low, middle)
    return scenario.cluster.tiers[-1].link.bandwidth_bits_s * float(10**low)
