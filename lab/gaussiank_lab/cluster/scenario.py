"""What is predicted: a cluster from a preset or a probe, with a model on it, and how they overlap."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

from gaussiank_lab.sim import (
    STRAIGHT_BYTES,
    Cluster,
    Curve,
    Device,
    Link,
    Overlap,
    Scenario,
    Spread,
    Tier,
)

from .shapes import find_shape

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


TCP_SHARE = 1448 / 1538
"""Payload in a full Ethernet frame of 1500 bytes, with TCP time stamps, preamble and gap: 94 %."""


_QUIET = Spread(compute_cv=0.03, network_cv=0.05)


@dataclass(frozen=True)
class Uncertainty:
    """How far a number may be off: one standard deviation of its logarithm.

    Args:
        bandwidth: of every link.
        latency: of every link and message.
        compute: of forward and backward.
        own: of selection, codec and decoding.
    """

    bandwidth: float = 0.1
    latency: float = 0.4
    compute: float = 0.15
    own: float = 0.5


@dataclass(frozen=True)
class Preset:
    """A cluster with its workers' device.

    Args:
        name: on the command line.
        cluster: what connects the workers.
        device: of each worker.
        workers: that its name means; more or fewer can be asked for.
        images_rate: ResNet-50 training throughput over a P100's.
        flops_rate: operations a second that are achieved on a language model.
        sources: where the numbers come from.
        assumed: which of them nobody measured.
        nodes: what is assumed of a machine and its port.
        accelerator: whether gradients are on one.
        input_images_s: what the input pipeline delivers to a worker, or None for more than enough.
        spread: how times differ.
        uncertainty: how far the numbers may be off.
    """

    name: str
    cluster: Cluster
    device: Device
    workers: int
    images_rate: float
    flops_rate: float
    sources: tuple[str, ...]
    assumed: tuple[str, ...]
    nodes: str = ""
    accelerator: bool = True
    input_images_s: float | None = None
    spread: Spread = field(default=_QUIET)
    uncertainty: Uncertainty = field(default_factory=Uncertainty)


def _ethernet(gigabits: float, latency_s: float, message_s: float = 5e-6, oversubscription: float = 1.0) -> Link:
    bandwidth = gigabits * 1e9 * TCP_SHARE
    return Link(f"{gigabits:g} GbE", bandwidth, latency_s, message_s, oversubscription=oversubscription)


_PCIE3 = Link("PCIe 3 x16", 8 * 12e9, 10e-6, 2e-6)
_NVLINK3 = Link("NVLink 3", 8 * 300e9 * 0.8, 2e-6, 1e-6)
_NVLINK4 = Link("NVLink 4", 8 * 450e9 * 0.8, 2e-6, 1e-6)
_A100, _H100 = gpu("A100", 1.7e12), gpu("H100", 3.0e12)
_A100_RATE, _H100_RATE = 2470 / 219, 2 * 2470 / 219
_V100_SOURCE = "V100: 356 images/s with ResNet-50 in float32 (NVIDIA DeepLearningExamples, DGX-1 32 GB, one GPU)"
_A100_SOURCE = "A100: 2,470 images/s with ResNet-50 in mixed precision (NVIDIA DeepLearningExamples, DGX A100, one GPU)"
_KERNEL = "selection: one pass of 12 bytes an element at the memory's bandwidth; not measured on a GPU"
_H100_ASSUMED = "H100: twice an A100 on images, 40 % of its 989 TFLOP/s on language models"
_OVERLAP = "jitter: 3 % of compute, 5 % of network times"

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "10gbe-16xV100",
            Cluster("10gbe-16xV100", (Tier("node", _PCIE3, 4), Tier("rack", _ethernet(10, 30e-6)))),
            gpu("V100", 0.8e12),
            16,
            images_rate=356 / 219,
            flops_rate=12e12,
            sources=(
                "the paper's setting: 16 GPUs, 10 Gb/s Ethernet, batch 128",
                _V100_SOURCE,
                "PCIe 3 x16: 15.75 GB/s by its specification",
                "input: 7,105 images/s for 4 GPUs (TensorFlow's benchmarks, AlexNet, real data, 4 P100 of a DGX-1)",
            ),
            assumed=(
                "PCIe reaches 12 GB/s; 30 us between nodes and 5 us a message",
                "V100 memory reaches 0.8 of its 0.9 TB/s; 12 of 15.7 TFLOP/s on language models",
                _KERNEL,
                _OVERLAP,
            ),
            nodes="nodes of 4 GPUs with one port each",
            input_images_s=7105 / 4,
        ),
        Preset(
            "25gbe-8xH100",
            Cluster("25gbe-8xH100", (Tier("node", _NVLINK4, 8), Tier("rack", _ethernet(25, 20e-6)))),
            _H100,
            16,
            images_rate=_H100_RATE,
            flops_rate=0.4 * 989e12,
            sources=("H100: NVLink 900 GB/s both ways, 3.35 TB/s, 989 TFLOP/s bf16 (data sheet)", _A100_SOURCE),
            assumed=(
                "collectives reach 80 % of NVLink; 20 us between nodes and 5 us a message",
                _H100_ASSUMED,
                _KERNEL,
                _OVERLAP,
            ),
            nodes="nodes of 8 GPUs with one 25 Gb/s port each",
        ),
        Preset(
            "100gbe",
            Cluster("100gbe", (Tier("node", _NVLINK3, 8), Tier("rack", _ethernet(100, 8e-6, 2e-6)))),
            _A100,
            32,
            images_rate=_A100_RATE,
            flops_rate=0.45 * 312e12,
            sources=("A100: NVLink 600 GB/s both ways, 2.0 TB/s, 312 TFLOP/s bf16 (data sheet)", _A100_SOURCE),
            assumed=(
                "collectives reach 80 % of NVLink",
                "8 us between nodes and 2 us a message (RDMA); 45 % of peak on language models",
                _KERNEL,
                _OVERLAP,
            ),
            nodes="nodes of 8 A100 with one 100 Gb/s port each",
        ),
        Preset(
            "nvlink+ib",
            Cluster(
                "nvlink+ib",
                (Tier("node", _NVLINK4, 8), Tier("rack", Link("8 x NDR InfiniBand", 8 * 400e9 * 0.9, 3e-6, 1e-6))),
            ),
            _H100,
            64,
            images_rate=_H100_RATE,
            flops_rate=0.4 * 989e12,
            sources=("DGX H100: NVLink 900 GB/s both ways, 8 ports of 400 Gb/s InfiniBand (data sheet)", _A100_SOURCE),
            assumed=(
                "collectives reach 80 % of NVLink and 90 % of InfiniBand; 3 us between nodes and 1 us a message",
                _H100_ASSUMED,
                _KERNEL,
                _OVERLAP,
            ),
        ),
        Preset(
            "1gbe-workstations",
            Cluster("1gbe-workstations", (Tier("rack", _ethernet(1, 50e-6)),)),
            gpu("workstation GPU", 0.9e12),
            8,
            images_rate=0.5 * _A100_RATE,
            flops_rate=60e12,
            sources=("1 Gb/s Ethernet: 94 % of it is payload (frame of 1500 bytes)", _A100_SOURCE),
            assumed=("half an A100; 50 us and 5 us a message", _KERNEL, _OVERLAP),
            nodes="one GPU a machine",
        ),
        Preset(
            "wan-500mbit",
            Cluster(
                "wan-500mbit",
                (Tier("node", _NVLINK4, 8), Tier("region", Link("500 Mb/s WAN", 500e6 * TCP_SHARE, 0.03, 1e-4))),
            ),
            _H100,
            64,
            images_rate=_H100_RATE,
            flops_rate=0.4 * 989e12,
            sources=("500 Mb/s: what public training runs over the internet report for a participant", _A100_SOURCE),
            assumed=(
                "60 ms round trip, 0.1 ms a message, no loss",
                _H100_ASSUMED,
                _KERNEL,
                "jitter: 3 % of compute, 20 % of network times",
            ),
            nodes="one node of 8 H100 in each region",
            spread=Spread(compute_cv=0.03, network_cv=0.2),
            uncertainty=Uncertainty(bandwidth=0.25),
        ),
        *(
            Preset(
                f"lab-{label}",
                Cluster(
                    f"lab-{label}",
                    (Tier("rack", Link(label, bits, 1e-4, 2e-5)),),
                    ("ring",),
                    straight_bytes=STRAIGHT_BYTES,
                ),
                cpu("one core of an AMD EPYC", contention=0.2),
                4,
                images_rate=2 / 219,
                flops_rate=50e9,
                sources=(
                    f"veth with a rate limit on both ends: {bits / 1e6:g} Mb/s measured; Gloo's ring all-reduce",
                    "selection: measured on this kind of machine",
                ),
                assumed=("2 images/s with ResNet-50 on a core: probe yours", "0.1 ms and 20 us a message"),
                accelerator=False,
                uncertainty=Uncertainty(bandwidth=0.05, compute=0.5, own=0.3),
            )
            for label, bits in (("100mbit", 95.8e6), ("1gbit", 952e6))
        ),
    )
}
"""Name -> preset."""


def find_preset(name: str) -> Preset:
    """Return the preset of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}. Correct it.")
    return PRESETS[name]


OVERLAP = Overlap(measured=Curve.of([(1, 1.0), (2, 1.88), (4, 3.42), (8, 6.05), (16, 10.1)]))
"""Union of real selections over k, by workers: benchmarks/selection_overlap.py, mean of LeNet-5 and FNN-3.

Both at densities 0.01 and 0.001, 16 workers of batch 32, steps 60 to 120 with error feedback, seed 0 (2026-11-24).
LeNet-5 has 8.1 to 9.2 at 16 workers, FNN-3 11.4 to 12.4; other models were not measured. Independent draws have 16.
"""


@dataclass(frozen=True)
class ScenarioSetting:
    """What to simulate, and what is known about the numbers.

    Args:
        label: preset or file.
        scenario: model, device, cluster and distributions.
        workers: how many the preset's name or the probe means.
        accelerator: whether gradients are on one.
        sources: where the numbers come from.
        assumed: which of them nobody measured.
        uncertainty: how far they may be off.
        rows: second moments that ``AdamRows`` has of the model, 0 where it is no transformer.
    """

    label: str
    scenario: Scenario
    workers: int
    accelerator: bool
    sources: tuple[str, ...]
    assumed: tuple[str, ...]
    uncertainty: Uncertainty
    rows: int = 0


def resolve(
    preset: str | None,
    probe: Path | None,
    model: str | None,
    gbit: float | None = None,
    per_node: int | None = None,
    round_trip_ms: float | None = None,
    step_ms: float | None = None,
) -> ScenarioSetting:
    """Make the setting of a command line.

    Args:
        preset: name of a cluster; where it is left out, ``gbit`` alone stands for workstations, or nodes of GPUs.
        probe: file of a measured one.
        model: of the preset's; a probe has its own.
        gbit: gigabits a second of the links between a preset's machines, in place of its own.
        per_node: workers that share a machine and its link, likewise.
        round_trip_ms: milliseconds from machine to machine and back, likewise.
        step_ms: milliseconds of a worker's step without exchange, in place of what the preset's device takes.

    Raises:
        ValueError: both or none of preset and probe, an unknown name, a probe of another model or version, or a
            change of the preset that does not fit.
        FileNotFoundError: there is no such probe.
    """
    changes = {"gbit": gbit, "per_node": per_node, "round_trip_ms": round_trip_ms, "step_ms": step_ms}
    if preset is None and probe is None and gbit is not None:
        preset = _NODES if per_node is not None and per_node > 1 else _WORKSTATIONS
    if (preset is None) == (probe is None):
        given = "none" if preset is None else f"{preset} and {probe}"
        raise ValueError(
            f"preset or probe must be given, one of them, got {given}. Give --preset NAME, --probe FILE or --gbit RATE."
        )
    if probe is not None:
        for argument, value in changes.items():
            if value is not None:
                raise ValueError(
                    f"{argument} must come with a preset, got {value:g} for {probe}. A probe has measured."
                )
        from .probe_file import read_probe

        return read_probe(probe, model).setting(str(probe))
    if model is None:
        raise ValueError("model must be given with a preset, got none. Give --model gpt2, for example.")
    return of_preset(str(preset), model, gbit, per_node, round_trip_ms, step_ms)


_WORKSTATIONS, _NODES = "1gbe-workstations", "25gbe-8xH100"


def of_preset(
    preset: str,
    model: str,
    gbit: float | None = None,
    per_node: int | None = None,
    round_trip_ms: float | None = None,
    step_ms: float | None = None,
) -> ScenarioSetting:
    """Make the setting of a preset and a model shape; see ``resolve``.

    Raises:
        ValueError: an unknown name, or a change that does not fit.
    """
    found, shape = find_preset(preset), find_shape(model)
    cluster = _changed(found, gbit, per_node, round_trip_ms)
    said = ((gbit, "Gb/s"), (per_node, "a machine"), (round_trip_ms, "ms round trips"), (step_ms, "ms a step"))
    given = [f"{value:g} {unit}" for value, unit in said if value is not None]
    nodes = (found.nodes,) * bool(found.nodes and gbit is None and per_node is None)
    optimizer_s = found.device.select_s("topk", shape.numel) * 20 / 12  # SGD with momentum moves 20 bytes an entry
    step_s = shape.step_s(found.images_rate, found.flops_rate)
    if step_ms is not None:
        if not step_ms > 0:
            raise ValueError(f"step_ms must be above 0, got {step_ms:g}. Time some steps of one worker alone.")
        step_s, optimizer_s = step_ms / 1e3, 0.0
    workload = shape.workload(step_s, found.input_images_s, optimizer_s)
    return ScenarioSetting(
        " with ".join([preset, *([" and ".join(given)] if given else [])]),
        Scenario(workload, found.device, cluster, OVERLAP, found.spread),
        found.workers,
        found.accelerator,
        (*found.sources, f"{model}: {shape.source}"),
        ("backward over layers in proportion to multiply-adds, twice forward", *nodes, *found.assumed),
        found.uncertainty,
        shape.rows,
    )


def _changed(preset: Preset, gbit: float | None, per_node: int | None, round_trip_ms: float | None) -> Cluster:
    """Return a preset's cluster with other links between machines, or other machines."""
    *inner, outer = preset.cluster.tiers
    if gbit is not None:
        if not gbit > 0:
            raise ValueError(f"gbit must be above 0, got {gbit:g}. Give gigabits a second, such as 10.")
        link = replace(outer.link, name=f"{gbit:g} Gb/s", bandwidth_bits_s=gbit * 1e9 * TCP_SHARE, oversubscription=1.0)
        outer = replace(outer, link=link)
    if round_trip_ms is not None:
        if not round_trip_ms >= 0:
            raise ValueError(f"round_trip_ms must be at least 0, got {round_trip_ms:g}. Give what ping says.")
        outer = replace(outer, link=replace(outer.link, latency_s=round_trip_ms / 2e3))
    if per_node is not None:
        if per_node < 1:
            raise ValueError(f"per_node must be at least 1, got {per_node}. Give the workers of a machine.")
        if per_node > 1 and not inner:
            raise ValueError(
                f"per_node must be 1 for {preset.name}, whose machines have one worker, got {per_node}. Leave it out."
            )
        inner = [Tier(tier.name, tier.link, per_node) for tier in inner] if per_node > 1 else []
    return replace(preset.cluster, tiers=(*inner, outer))


def between_nodes(setting: ScenarioSetting, workers: int) -> tuple[ScenarioSetting, int, int]:
    """See a model that ``fully_shard`` shards inside each machine as its replicas, one a machine, see it.

    A worker then has a shard, and its share of the machine's link; what FSDP2 sends inside a machine is taken as
    hidden, with every method alike.

    Args:
        setting: with several workers a machine.
        workers: in all.

    Returns:
        The setting of one shard, the number of machines, and the workers of each.

    Raises:
        ValueError: machines of one worker, or a number of workers that does not fill machines.
    """
    *inner, outer = setting.scenario.cluster.tiers
    shards = math.prod(tier.members or 1 for tier in inner)
    if shards == 1:
        raise ValueError(
            f"fsdp must come with machines of several workers, got {setting.label} with one each. Give a preset with "
            "several, such as 25gbe-8xH100, and --gbit and --per-node for your own."
        )
    if workers % shards:
        raise ValueError(
            f"workers must be a multiple of {shards}, those of a machine, with fsdp, got {workers}. Give whole "
            "machines, or --per-node."
        )
    workload, link = setting.scenario.workload, outer.link
    buckets = tuple(replace(one, numel=-(-one.numel // shards)) for one in workload.buckets)
    share = replace(link, bandwidth_bits_s=link.bandwidth_bits_s / shards)
    cluster = replace(setting.scenario.cluster, tiers=(replace(outer, link=share),))
    scenario = replace(setting.scenario, workload=replace(workload, buckets=buckets), cluster=cluster)
    return replace(setting, scenario=scenario, rows=-(-setting.rows // shards)), workers // shards, shards
