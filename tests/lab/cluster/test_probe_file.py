from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.each import each

from gaussiank_lab.cluster.advice import WIRES, compact_wire
from gaussiank_lab.cluster.probe_file import MEASURED_DENSITY, Probe, read_probe, write_probe
from gaussiank_lab.cluster.scenario import resolve
from gaussiank_lab.sim import Method, operation_s, simulate

LINKS = {
    "all_reduce": ((1e3, 3e-4), (1e6, 2e-3), (1e7, 1.8e-2)),
    "all_gather": ((1e3, 2e-4), (1e6, 4e-3), (1e7, 4e-2)),
}
PROBE = Probe(
    gaussiank="0.1.0", date="2026-11-24", machine="a processor", workers=4, workers_per_node=4, device="cpu",
    model="lenet5", batch_size=32, epoch_samples=10_000, forward_s=0.004, optimizer_s=0.0005,
    buckets=((59134.0, 0.003), (2572.0, 0.004)), links=LINKS, select={"topk": ((1e3, 2e-5), (1e6, 2e-4))},
    curves={"encode": ((10.0, 1e-5), (1e4, 5e-5)), "decode": ((10.0, 1e-5), (1e4, 5e-5))},
    contention=0.3, compute_cv=0.02,
)  # fmt: skip


def changed(path: Path, **changes: Any) -> Path:
    write_probe(path, PROBE)
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not ...}))
    return path


def test_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_probe(tmp_path / "probe.json", PROBE)
    assert read_probe(tmp_path / "probe.json") == PROBE
    assert read_probe(tmp_path / "probe.json", "lenet5") == PROBE
    assert (tmp_path / "probe.json").stat().st_size < 5000


def test_setting_repeats_what_was_measured(tmp_path: Path) -> None:
    write_probe(tmp_path / "probe.json", PROBE)
    setting = resolve(None, tmp_path / "probe.json", None)
    assert (setting.workers, setting.accelerator, setting.scenario.workload.numel) == (4, False, 61_706)
    for name, points in LINKS.items():
        for size, seconds in points:
            assert operation_s(setting.scenario.cluster, name, 4, size) == pytest.approx(seconds)
    assert simulate(setting.scenario, Method("topk"), 64).step_s > setting.scenario.workload.alone_s


@each(("name", "encodes"), [("allgather", False), ("split", True), ("tree", True), ("leader", True)])
def test_what_an_exchange_encodes_is_counted_once(tmp_path: Path, name: str, encodes: bool) -> None:
    write_probe(tmp_path / "probe.json", replace(PROBE, exchanges={name: ((61_706.0, 0.025),)}))
    one = resolve(None, tmp_path / "probe.json", None)
    method = Method("m", "topk", MEASURED_DENSITY, WIRES[compact_wire(accelerator=False)], name)
    journey = method.journey(61_706, one.scenario.device, one.scenario.cluster, 4, one.scenario.overlap)
    selected_s = one.scenario.device.select_s("topk", 61_706)
    assert journey.prepare_s > selected_s
    begun_s = selected_s if encodes else journey.prepare_s
    assert journey.prepare_s + journey.network_s + journey.finish_s == pytest.approx(begun_s + 0.025)


def test_an_exchange_takes_what_it_was_measured_to_take(tmp_path: Path) -> None:
    write_probe(tmp_path / "probe.json", replace(PROBE, exchanges={"allgather": ((61_706.0, 0.025),)}))
    slow, quick = resolve(None, tmp_path / "probe.json", None), PROBE.setting("quick")
    method = Method("m", "topk", MEASURED_DENSITY, WIRES[compact_wire(accelerator=False)])
    taken = [
        method.journey(61_706, one.scenario.device, one.scenario.cluster, 4, one.scenario.overlap)
        for one in (slow, quick)
    ]
    assert taken[0].network_s + taken[0].finish_s == pytest.approx(0.025)
    assert taken[1].network_s + taken[1].finish_s < 0.01
    alone = method.journey(61_706, slow.scenario.device, slow.scenario.cluster, 1, slow.scenario.overlap)
    assert alone.network_s == 0
    assert slow.scenario.device.exchange["hierarchical"] == slow.scenario.device.exchange["allgather"]


def test_one_worker_knows_of_no_link(tmp_path: Path) -> None:
    path = changed(tmp_path / "probe.json", workers=1, links={})
    setting = resolve(None, path, None)
    assert simulate(setting.scenario, Method("dense", "dense"), 1).step_s > 0
    with pytest.raises(ValueError, match=r"^workers must be at most 1 on .*, got 2\."):
        simulate(setting.scenario, Method("dense", "dense"), 2)


@each(
    ("changes", "sentence"),
    [
        ({"kind": "a diary"}, "kind of {} must be 'gaussiank probe', got "),
        ({"format": 1}, "format of {} must be 2, got 1. Probe again"),
        ({"format": ...}, "format of {} must be 2, got None. "),
        ({"exchanges": {"dense": []}}, "exchanges of {} must be among allgather, split, leader, tree, got 'dense'. "),
        ({"colour": 1}, "fields of {} must be among gaussiank, date, "),
        ({"forward_s": ...}, "fields of {} must include forward_s, got none. "),
        ({"model": 5}, "model of {} must be text, got 5. "),
        ({"workers": 0}, "workers of {} must be a whole number of at least 1, got 0. "),
        ({"workers": 2.5}, "workers of {} must be a whole number of at least 1, got 2.5. "),
        ({"forward_s": -1}, "forward_s of {} must be a number of at least 0, got -1. "),
        ({"forward_s": "fast"}, "forward_s of {} must be a number of at least 0, got 'fast'. "),
        ({"contention": float("nan")}, "contention of {} must be a number of at least 0, got nan. "),
        ({"links": {}}, "links of {} must be given for 4 workers, got none. "),
        ({"links": {"gossip": []}}, "links of {} must be among all_reduce, "),
        ({"links": {"all_reduce": [[1000, 0]]}}, "seconds in all_reduce in links of {} must be above 0, got 0. "),
        ({"links": {"all_reduce": [[1000, 1], [10, 2]]}}, "sizes in all_reduce in links of {} must ascend, got "),
        ({"links": {"all_reduce": [[1000, 2], [10_000, 1]]}}, "bandwidth must follow from the measured times, "),
        ({"buckets": []}, "buckets of {} must be at least one, got none. "),
        ({"buckets": [[0, 1]]}, "size in buckets of {} must be a number of at least 1, got 0. "),
        ({"select": [1]}, "select of {} must be an object, got [1]. "),
        ({"curves": {"encode": [[1, 2, 3]]}}, "encode in curves of {} must be a list of pairs, got [[1, 2, 3]]. "),
    ],
)
def test_each_impossible_field_is_named(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    path = changed(tmp_path / "probe.json", **changes)
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the sentence is compared
        resolve(None, path, None)
    assert str(caught.value).startswith(sentence.replace("{}", str(path)))


def test_another_model_or_no_file(tmp_path: Path) -> None:
    write_probe(tmp_path / "probe.json", PROBE)
    with pytest.raises(ValueError, match=r"^model must be lenet5 with .*, which was measured on it, got 'fnn3'\."):
        resolve(None, tmp_path / "probe.json", "fnn3")
    with pytest.raises(FileNotFoundError, match=r"^probe must be a file, got .*, which does not exist\."):
        resolve(None, tmp_path / "none.json", None)
    (tmp_path / "text.json").write_text("hello")
    with pytest.raises(ValueError, match=r"^probe must be a JSON file, got "):
        resolve(None, tmp_path / "text.json", None)
    with pytest.raises(ValueError, match=r"^preset or probe must be given, one of them, got 100gbe and "):
        resolve("100gbe", tmp_path / "probe.json", None)
