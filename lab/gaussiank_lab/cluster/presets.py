"""Clusters that can be simulated without one; each number says where it comes from, or that it is assumed."""

from __future__ import annotations

from dataclasses import dataclass, field

from gaussiank_lab.sim import STRAIGHT_BYTES, Cluster, Device, Link, Spread, Tier

from .devices import cpu, gpu

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
