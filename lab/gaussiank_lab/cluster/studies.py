"""Two questions answered by simulation, each with a figure of the documentation: who gains, and how far it scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gaussiank_lab.cluster.advice import DENSE_16, WIRES, best_gain
from gaussiank_lab.cluster.scenario import OVERLAP, PRESETS, TCP_SHARE
from gaussiank_lab.cluster.shapes import ModelShape
from gaussiank_lab.sim import Cluster, Link, Method, Scenario, Spread, Tier, Workload, local_steps

H100 = PRESETS["nvlink+ib"]
BANDWIDTHS_BITS_S = tuple(10 ** (8 + e / 3) for e in range(14))
"""Of a node's port: 100 Mb/s to 2.2 Tb/s."""
NUMELS = tuple(round(10 ** (6 + e / 2)) for e in range(9))
WORKERS = (16, 128, 1024)
TOKENS = 8192
GAIN_DENSITIES = (0.01, 0.001)

REGIONS, REGION_NODES, NODE_WORKERS = 20, 125, 4
EVERY = (1, 2, 5, 10, 20, 50, 100, 200, 500)
WAN_BITS_S = (100e6, 300e6, 1e9)
WAN_LATENCY_S = 0.04


@dataclass(frozen=True)
class GainRow:
    """Gain of the best setting over the better dense method.

    Args:
        workers: how many, in nodes of 8.
        numel: parameters.
        bandwidth_bits_s: of a node's port.
        gain: seconds of dense over seconds of compressed.
    """

    workers: int
    numel: int
    bandwidth_bits_s: float
    gain: float


@dataclass(frozen=True)
class ScaleRow:
    """Local steps over regions.

    Args:
        method: its name.
        bandwidth_bits_s: of a region's link.
        every: steps between exchanges.
        step_s: seconds of a step, exchanges shared out.
        efficiency: of 10,000 workers.
        sent_bytes: that a worker sends in an exchange.
    """

    method: str
    bandwidth_bits_s: float
    every: int
    step_s: float
    efficiency: float
    sent_bytes: float


def _transformer(numel: int, tokens: int = TOKENS) -> Workload:
    layers = 24
    shape = ModelShape("transformer", ((numel // layers, 1.0),) * layers, 1, 10**6, "equal layers", tokens=tokens)
    return shape.workload(shape.step_s(H100.images_rate, H100.flops_rate))


def gain_rows(
    bandwidths_bits_s: Sequence[float] = BANDWIDTHS_BITS_S,
    numels: Sequence[int] = NUMELS,
    workers: Sequence[int] = WORKERS,
) -> list[GainRow]:
    """Compare on nodes of 8 H100 with one port each, 10 us between nodes, 8,192 tokens a worker and step."""
    node = H100.cluster.tiers[0]
    rows = []
    for numel in numels:
        workload = _transformer(numel)
        for bandwidth in bandwidths_bits_s:
            cluster = Cluster("any", (node, Tier("rack", Link("port", bandwidth, 8e-6, 2e-6))))
            scenario = Scenario(workload, H100.device, cluster, OVERLAP)
            rows += [
                GainRow(count, numel, bandwidth, best_gain(scenario, count, GAIN_DENSITIES)) for count in workers
            ]  # fmt: skip
    return rows


def regions(bandwidth_bits_s: float) -> Cluster:
    """Return 20 regions of 125 nodes of 4 H100: 25 GbE inside, one link of the given bandwidth out of each region."""
    node, rack = PRESETS["25gbe-8xH100"].cluster.tiers
    return Cluster(
        "20 regions",
        (
            replace(node, members=NODE_WORKERS),
            Tier("region", rack.link, REGION_NODES),
            Tier("world", Link("WAN", bandwidth_bits_s * TCP_SHARE, WAN_LATENCY_S, 1e-4), REGIONS),
        ),
    )


def scale_methods() -> tuple[Method, ...]:
    """Return what is compared between regions."""
    topk = Method("topk 0.01", "topk", 0.01, WIRES["chunks+bf16"], "hierarchical", "model")
    return DENSE_16, topk, replace(topk, name="topk 0.001", density=0.001)


def scale_rows(
    numel: int = 1_311_000_000, bandwidths_bits_s: Sequence[float] = WAN_BITS_S, every: Sequence[int] = EVERY
) -> list[ScaleRow]:
    """Cost local steps of 10,000 workers in 20 regions; 3 % jitter, and one worker in a hundred 1.2 times as slow."""
    workers = REGIONS * REGION_NODES * NODE_WORKERS
    spread = Spread(compute_cv=0.03, straggler_share=0.01, straggler_factor=1.2)
    workload = _transformer(numel)
    rows = []
    for bandwidth in bandwidths_bits_s:
        scenario = Scenario(workload, H100.device, regions(bandwidth), OVERLAP, spread)
        for method in scale_methods():
            for steps in every:
                cost = local_steps(scenario, method, workers, steps)
                rows.append(
                    ScaleRow(method.name, bandwidth, steps, cost.step_s, cost.efficiency, cost.sent_bytes)
                )  # fmt: skip
    return rows
