from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.each import each

from gaussiank.codec import Wire
from gaussiank.collectives import parse_collective
from gaussiank_lab.cluster.advice import WIRES, all_methods
from gaussiank_lab.cluster.scenario import PRESETS, of_preset, resolve
from gaussiank_lab.cluster.shapes import BUCKET_NUMEL, SHAPES, find_shape
from gaussiank_lab.sim import Cluster, Link, Tier, predict
from gaussiank_lab.sim.collectives import COLLECTIVES, Load

NUMELS = {
    "alexnet": 61_100_840, "vgg16-imagenet": 138_357_544, "resnet50": 25_557_032, "inception-v4": 42_679_816,
    "resnet20": 269_722, "lenet5": 61_706, "fnn3": 199_210,
}  # fmt: skip


@each("name", NUMELS)
def test_shapes_have_the_parameters_of_their_models(name: str) -> None:
    assert find_shape(name).numel == NUMELS[name]


def test_transformers_have_the_size_in_their_name() -> None:
    for name, millions in (("transformer-350m", 350), ("transformer-1.3b", 1300), ("transformer-7b", 6600)):
        assert find_shape(name).numel / 1e6 == pytest.approx(millions, rel=0.02)


@each("name", SHAPES)
def test_buckets_hold_the_whole_model_and_all_its_time(name: str) -> None:
    shape = SHAPES[name]
    workload = shape.workload(0.3)
    assert workload.numel == shape.numel
    assert workload.backward_s == pytest.approx(0.2)
    assert workload.forward_s == pytest.approx(0.1)
    largest_group = max(numel for numel, _ in shape.groups)
    assert max(bucket.numel for bucket in workload.buckets) < BUCKET_NUMEL + largest_group


def test_fully_connected_layers_come_first_in_backward() -> None:
    first, *_, last = find_shape("vgg16-imagenet").workload(1.0).buckets
    assert (first.numel, last.backward_s > 0.5) == (4_097_000, True)  # the classifier; the convolutions' work


@each("name", PRESETS)
def test_every_preset_says_where_it_comes_from_and_runs_every_method(name: str) -> None:
    setting = of_preset(name, "resnet50")
    assert setting.sources
    assert setting.assumed
    methods = all_methods(0.01, accelerator=setting.accelerator)
    rows = predict(setting.scenario, methods, [1, setting.workers], steps=2)
    assert [row.method for row in rows[: len(methods)]] == [method.name for method in methods]
    assert all(0 < row.efficiency <= 1.0001 for row in rows)


def test_lab_preset_agrees_with_what_gloo_took_on_it() -> None:
    """100 Mbit/s, 4 workers, 1e7 entries: dense 5,250 ms, raw entries 19 ms, measured on a real limited link."""
    setting = of_preset("lab-100mbit", "resnet50")
    device, cluster = setting.scenario.device, setting.scenario.cluster
    dense, _, _, raw, *_ = all_methods(0.001, accelerator=False)
    overlap = setting.scenario.overlap
    assert dense.journey(10**7, device, cluster, 4, overlap).network_s == pytest.approx(5.25, rel=0.1)
    assert raw.journey(10**7, device, cluster, 4, overlap).network_s == pytest.approx(0.019, rel=0.15)


def test_a_preset_becomes_another_cluster() -> None:
    plain, other = of_preset("10gbe-16xV100", "resnet50"), of_preset("10gbe-16xV100", "resnet50", 25, 1)
    assert [tier.members for tier in plain.scenario.cluster.tiers] == [4, None]
    (tier,) = other.scenario.cluster.tiers
    assert tier.link.bandwidth_bits_s == pytest.approx(2.5 * plain.scenario.cluster.tiers[-1].link.bandwidth_bits_s)
    assert other.label == "10gbe-16xV100 with 25 Gb/s and 1 a machine"
    assert any("nodes of 4" in words for words in plain.assumed)
    assert not any("nodes of 4" in words for words in other.assumed)
    two = of_preset("10gbe-16xV100", "resnet50", None, 2)
    assert [tier.members for tier in two.scenario.cluster.tiers] == [2, None]
    assert two.scenario.workload == plain.scenario.workload


def test_wire_sizes_are_the_codecs() -> None:
    assert WIRES["raw+fp32"].payload_bytes(1000, 10**6) == 8020
    assert WIRES["rice+bf16"].payload_bytes(1000, 10**6) == pytest.approx(3524, abs=30)
    for name in ("chunks12+bf16", "chunks12+2bit"):
        for k in (100, 1000, 15_625, 10**5, 10**6):
            most = Wire.parse(name).max_bytes(k, 10**6)
            assert WIRES[name].payload_bytes(k, 10**6) == pytest.approx(most, rel=0.02)
    for name in ("rice+bf16", "rice+bf16-rice"):
        usual = Wire.parse(name).usual_bytes(1000, 10**6)
        assert WIRES[name].payload_bytes(1000, 10**6) == pytest.approx(usual, rel=0.01)
        assert WIRES[name].fixed().payload_bytes(1000, 10**6) == pytest.approx(3524, abs=30)
    assert WIRES["rice+bf16"].payload_bytes(1000, 10**5) < WIRES["rice+bf16"].payload_bytes(1000, 10**6)


@each("name", ["allgather", "split", "leader", "tree"])
@each("workers", [2, 4, 16])
@each("wire", ["rice+bf16", "rice+bf16-rice", "chunks+bf16"])
def test_bytes_of_compact_wires_are_those_of_the_real_collectives(name: str, workers: int, wire: str) -> None:
    cluster = Cluster("c", (Tier("rack", Link("l", 1e9)),))
    real = parse_collective(name).traffic(10**6, 1000, workers, Wire.parse(wire)).sent_bytes
    assert COLLECTIVES[name](cluster, workers, Load(10**6, 1000, WIRES[wire])).sent_bytes == pytest.approx(
        real, rel=0.02
    )


@each(
    ("arguments", "sentence"),
    [
        (("nowhere", None, "resnet50"), "preset must be one of 10gbe-16xV100, "),
        (("100gbe", None, "resnet5"), "model must be one of alexnet, "),
        (("100gbe", None, None), "model must be given with a preset, got none. "),
        ((None, None, "resnet50"), "preset or probe must be given, one of them, got none. "),
        (("100gbe", None, "resnet50", 0.0), "gbit must be above 0, got 0. "),
        (("100gbe", None, "resnet50", None, 0), "per_node must be at least 1, got 0. "),
        (
            ("lab-1gbit", None, "resnet50", None, 2),
            "per_node must be 1 for lab-1gbit, whose machines have one worker, ",
        ),
        ((None, Path("probe.json"), None, 5.0), "gbit must come with a preset, got 5 for probe.json. "),
    ],
)
def test_what_is_no_cluster_is_refused_in_a_sentence(arguments: tuple[Any, ...], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the sentence is compared
        resolve(*arguments)
    assert str(caught.value).startswith(sentence)
