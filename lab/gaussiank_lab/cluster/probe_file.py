"""What a probe measured, as one small versioned JSON file, checked field by field when it is read."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from gaussiank_lab.cluster.advice import WIRES, compact_wire
from gaussiank_lab.cluster.scenario import OVERLAP, ScenarioSetting, Uncertainty
from gaussiank_lab.cluster.shapes import SHAPES
from gaussiank_lab.outputs import write_whole
from gaussiank_lab.sim import (
    OPERATIONS,
    STRAIGHT_BYTES,
    Bucket,
    Cluster,
    Curve,
    Device,
    Link,
    Method,
    Scenario,
    Spread,
    Tier,
    Workload,
    fit_cluster,
)

FORMAT = 2
KIND = "gaussiank probe"
MEASURED_DENSITY = 0.001
Points = tuple[tuple[float, float], ...]
EXCHANGES = ("allgather", "split", "leader", "tree")
CURVES = ("encode", "decode", "merge", "clear", "cast")
_TIMES = ("forward_s", "optimizer_s")


@dataclass(frozen=True)
class Probe:
    """Hold what was measured.

    Args:
        gaussiank: version that measured.
        date: day, UTC.
        machine: its description, for reports.
        workers: processes that took part.
        workers_per_node: of them on one machine.
        device: ``cpu`` or ``cuda``.
        model: name of the model.
        batch_size: examples a worker and step.
        epoch_samples: examples of an epoch.
        forward_s: seconds of forward and loss.
        optimizer_s: seconds of the optimizer's step.
        buckets: (numel, seconds of backward), in the order of backward.
        links: collective of torch -> (message bytes, seconds); empty for one worker.
        links_inside: the same among the workers of one node; empty for one node, and for one worker a node.
        select: compressor -> (numel, seconds).
        curves: ``encode``, ``decode`` and ``merge`` over entries, ``clear`` and ``cast`` over numel.
        exchanges: collective of ours -> (numel, seconds) of whole exchanges at density 0.001, without selection; empty
            for one worker.
        contention: seconds that backward loses for each second of messages under way.
        compute_cv: deviation over mean of a worker's compute time.
    """

    gaussiank: str
    date: str
    machine: str
    workers: int
    workers_per_node: int
    device: str
    model: str
    batch_size: int
    epoch_samples: int
    forward_s: float
    optimizer_s: float
    buckets: Points
    links: Mapping[str, Points] = field(default_factory=dict)
    links_inside: Mapping[str, Points] = field(default_factory=dict)
    select: Mapping[str, Points] = field(default_factory=dict)
    curves: Mapping[str, Points] = field(default_factory=dict)
    exchanges: Mapping[str, Points] = field(default_factory=dict)
    contention: float = 0.0
    compute_cv: float = 0.0

    def setting(self, label: str) -> ScenarioSetting:
        """Return what to simulate.

        Raises:
            ValueError: times that no cluster can have; names the field.
        """
        buckets = tuple(Bucket(int(numel), seconds) for numel, seconds in self.buckets)
        workload = Workload(
            self.model, buckets, self.forward_s, self.optimizer_s, self.batch_size, self.epoch_samples
        )  # fmt: skip
        curves: dict[str, Any] = {name: Curve.of(self.curves.get(name, ())) for name in CURVES}
        device = Device(
            self.machine,
            select={name: Curve.of(points) for name, points in self.select.items()},
            contention=self.contention,
            **curves,
        )
        cluster = self._cluster(label)
        device = replace(device, exchange=self._exchange_s(device, cluster))
        scenario = Scenario(workload, device, cluster, OVERLAP, Spread(compute_cv=self.compute_cv))
        return ScenarioSetting(
            label,
            scenario,
            self.workers,
            self.device != "cpu",
            (f"measured {self.date} by gaussiank {self.gaussiank} on {self.machine}, {self.workers} workers",),
            ("other numbers of workers: links as fitted, none of another kind beyond them",),
            Uncertainty(bandwidth=0.1, latency=0.2, compute=0.05, own=0.15),
            SHAPES[self.model].rows if self.model in SHAPES else 0,
        )

    def _exchange_s(self, device: Device, cluster: Cluster) -> dict[str, float]:
        """Return what exchanges took beyond what is predicted of them: nobody else has measured that."""
        wire, beyond = WIRES[compact_wire(accelerator=self.device != "cpu")], {}
        for name, points in self.exchanges.items():
            method = Method(name, "topk", MEASURED_DENSITY, wire, name)
            surplus = []
            for numel, seconds in points:
                journey = method.journey(int(numel), device, cluster, self.workers, OVERLAP)
                known = journey.network_s + journey.finish_s
                if name != "allgather":  # of several messages: it encodes when the selection is over
                    known += journey.prepare_s - device.select_s("topk", numel)
                surplus.append(seconds - known)
            beyond[name] = max(0.0, statistics.median(surplus))
        if beyond:  # not measured: it needs nodes. It takes several phases, as split does
            beyond["hierarchical"] = beyond.get("split", max(beyond.values()))
        return beyond

    def _cluster(self, label: str) -> Cluster:
        if not self.links:  # one worker: nothing is known about any link
            return Cluster(label, (Tier("alone", Link("none", 1e9), 1),))
        inside = self.links_inside or None
        cluster = fit_cluster(label, self.links, self.workers, inside=inside, members=self.workers_per_node)
        return replace(cluster, straight_bytes=STRAIGHT_BYTES if self.device == "cpu" else 0.0)


def write_probe(path: Path, probe: Probe) -> None:
    """Write the file."""
    fields = {"kind": KIND, "format": FORMAT, **asdict(probe)}
    write_whole(path, (json.dumps(fields, indent=1) + "\n").encode())


def read_probe(path: Path, model: str | None = None) -> Probe:
    """Read a probe, and check that it is what the caller thinks it is.

    Args:
        path: the file.
        model: model that it must be of, or None for whichever it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no probe, of another version or model, or a field is impossible; names it.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"probe must be a file, got {path}, which does not exist. Correct it.") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"probe must be a JSON file, got {path} ({error}). Run gaussiank probe.") from None
    if not isinstance(fields, dict) or fields.get("kind") != KIND:
        raise ValueError(f"kind of {path} must be {KIND!r}, got {_brief(fields)}. Run gaussiank probe.")
    if fields.get("format") != FORMAT:
        raise ValueError(
            f"format of {path} must be {FORMAT}, got {fields.get('format')!r}. Probe again with this gaussiank."
        )
    probe = _checked(fields, str(path))
    if model is not None and model != probe.model:
        raise ValueError(
            f"model must be {probe.model} with {path}, which was measured on it, got {model!r}. "
            f"Leave it out, or run gaussiank probe --model {model}."
        )
    return probe


def _checked(fields: Mapping[str, Any], where: str) -> Probe:
    known = Probe.__dataclass_fields__
    given = {name: value for name, value in fields.items() if name not in ("kind", "format")}
    for name in given:
        if name not in known:
            raise ValueError(f"fields of {where} must be among {', '.join(known)}, got {name!r}. Remove it.")
    for name in known:
        if name not in given:
            raise ValueError(f"fields of {where} must include {name}, got none. Probe again.")
    _require_scalars(given, where)
    given["buckets"] = _points(f"buckets of {where}", given["buckets"])
    if not given["buckets"]:
        raise ValueError(f"buckets of {where} must be at least one, got none. Probe again.")
    for name, keys in (
        ("links", OPERATIONS),
        ("links_inside", OPERATIONS),
        ("select", None),
        ("curves", CURVES),
        ("exchanges", EXCHANGES),
    ):
        given[name] = _curves(f"{name} of {where}", given[name], keys)
    if given["workers"] > 1 and not given["links"]:
        raise ValueError(f"links of {where} must be given for {given['workers']} workers, got none. Probe again.")
    return Probe(**given)


def _require_scalars(given: Mapping[str, Any], where: str) -> None:
    for name in ("gaussiank", "date", "machine", "device", "model"):
        if not isinstance(given[name], str):
            raise ValueError(f"{name} of {where} must be text, got {_brief(given[name])}. Probe again.")
    for name in ("workers", "workers_per_node", "batch_size", "epoch_samples"):
        _require_number(f"{name} of {where}", given[name], least=1, whole=True)
    for name in (*_TIMES, "contention", "compute_cv"):
        _require_number(f"{name} of {where}", given[name], least=0)


def _curves(field_name: str, value: Any, keys: tuple[str, ...] | None) -> dict[str, Points]:
    if not isinstance(value, dict):
        raise ValueError(f"{field_name} must be an object, got {_brief(value)}. Probe again.")
    for key in value:
        if keys is not None and key not in keys:
            raise ValueError(f"{field_name} must be among {', '.join(keys)}, got {key!r}. Remove it.")
    return {key: _points(f"{key} in {field_name}", points) for key, points in value.items()}


def _points(field_name: str, value: Any) -> Points:
    """Return pairs of positive numbers; of a curve, in ascending order."""
    pairs = value if isinstance(value, list) else [value]
    if any(not isinstance(pair, list) or len(pair) != 2 for pair in pairs):
        raise ValueError(f"{field_name} must be a list of pairs, got {_brief(value)}. Probe again.")
    for size, number in pairs:
        _require_number(f"size in {field_name}", size, least=1)
        _require_number(f"seconds in {field_name}", number, least=0)
        if number == 0 and not field_name.startswith("buckets"):
            raise ValueError(f"seconds in {field_name} must be above 0, got 0. Probe again.")
    if not field_name.startswith("buckets") and any(a[0] >= b[0] for a, b in itertools.pairwise(pairs)):
        raise ValueError(f"sizes in {field_name} must ascend, got {[pair[0] for pair in pairs]}. Sort them.")
    return tuple((float(size), float(number)) for size, number in pairs)


def _require_number(field_name: str, value: Any, *, least: float, whole: bool = False) -> None:
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < least:
        kind = "a whole number" if whole else "a number"
        raise ValueError(f"{field_name} must be {kind} of at least {least:g}, got {_brief(value)}. Probe again.")


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
