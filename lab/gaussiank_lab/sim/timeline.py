"""The timeline of a training step, and its trace for chrome://tracing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gaussiank_lab.sim.curve import Overlap, require_at_least
from gaussiank_lab.sim.method import Journey, Method
from gaussiank_lab.sim.topology import Bucket, Cluster, Device, Spread, Workload

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scenario:
    """All that a simulation depends on besides the method, the number of workers and the seed.

    Args:
        workload: the model.
        device: of each worker.
        cluster: what connects them.
        overlap: how much of what workers select is the same.
        spread: how times differ.
    """

    workload: Workload
    device: Device
    cluster: Cluster
    overlap: Overlap = field(default_factory=Overlap)
    spread: Spread = field(default_factory=Spread)


@dataclass(frozen=True)
class Timeline:
    """When everything happened, in seconds from the start of the first step.

    S steps, B buckets, E exchanges (B, or 1 for the whole model), W traced workers.

    Attributes:
        scenario: what was simulated.
        method: with which method.
        workers: with how many workers.
        began: ``[S, W]`` start of forward.
        filled: ``[S, W, B]`` backward of the bucket has ended.
        prepared: ``[S, W, E]`` its selection is encoded.
        started: ``[S, E]`` the message starts: all workers are ready.
        arrived: ``[S, E]`` it has arrived.
        decoded: ``[S, E]`` it is in the gradient.
        ended: ``[S, W]`` the optimizer has stepped.
        closed: ``[S]`` the slowest of all workers has, traced or not.
        sent_bytes: that a worker sends in a step.
        pace: drawn compute time of an average worker and step, over its mean.
    """

    scenario: Scenario
    method: Method
    workers: int
    began: Floats
    filled: Floats
    prepared: Floats
    started: Floats
    arrived: Floats
    decoded: Floats
    ended: Floats
    closed: Floats
    sent_bytes: float
    pace: float

    @property
    def steps(self) -> int:
        """Steps simulated."""
        return len(self.closed)

    @property
    def step_s(self) -> float:
        """Mean seconds of a step."""
        return float(self.closed[-1] / self.steps)


def simulate(
    scenario: Scenario, method: Method, workers: int, *, steps: int = 1, seed: int = 0, traced: int = 4
) -> Timeline:
    """Play ``steps`` training steps of ``workers`` workers.

    The same seed gives the same compute times to every method, so that differences between methods are not chance.

    Args:
        scenario: model, device, cluster and distributions.
        method: how gradients are exchanged.
        workers: how many, at least 1.
        steps: how many, at least 1.
        seed: of jitter and stragglers.
        traced: workers whose times are kept.

    Raises:
        ValueError: workers do not fit the cluster, or a number below 1.

    Example:
        >>> from gaussiank_lab.sim import Bucket, Cluster, Device, Link, Tier, Workload
        >>> cluster = Cluster("two", (Tier("rack", Link("1 GbE", 1e9)),))
        >>> workload = Workload("model", (Bucket(25_000_000, 0.1),), forward_s=0.05)
        >>> scenario = Scenario(workload, Device("any"), cluster)
        >>> round(simulate(scenario, Method("dense", "dense"), workers=2).step_s, 3)  # 100 MB each way
        0.95
    """
    require_at_least("steps", steps, 1, "20 average jitter out.")
    require_at_least("workers", workers, 1, "One worker sends nothing.")
    return _Run(scenario, method, workers, steps, seed, traced).play()


class _Run:
    """One simulation under way; arrays over workers have one column when all are alike."""

    def __init__(self, scenario: Scenario, method: Method, workers: int, steps: int, seed: int, traced: int) -> None:
        self.scenario, self.method, self.workers = scenario, method, workers
        workload = scenario.workload
        whole = method.scope == "model" and not method.sends_all
        sizes = [workload.numel] if whole else [bucket.numel for bucket in workload.buckets]
        costs = {size: self._cost(size) for size in set(sizes)}
        self.journeys = [costs[size] for size in sizes]
        self.whole = whole
        compute_rng, network_rng = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
        self.compute = scenario.spread.compute_factors(compute_rng, workers, steps)
        self.network = scenario.spread.network_factors(network_rng, steps, len(sizes))
        columns, exchanges = self.compute.shape[1], len(sizes)
        self.kept = min(columns, traced)
        self.filled = np.zeros((steps, self.kept, len(workload.buckets)))
        self.prepared = np.zeros((steps, self.kept, exchanges))
        self.started, self.arrived, self.decoded = (np.zeros((steps, exchanges)) for _ in range(3))
        self.began, self.ended = np.zeros((steps, columns)), np.zeros((steps, columns))

    def _cost(self, numel: int) -> Journey:
        scenario = self.scenario
        return self.method.journey(numel, scenario.device, scenario.cluster, self.workers, scenario.overlap)

    def play(self) -> Timeline:
        workload = self.scenario.workload
        start = np.zeros(self.compute.shape[1])
        for step, factors in enumerate(self.compute):
            self.began[step] = start
            lane = self._backward(step, start + workload.forward_s * factors, factors)
            done = np.maximum(lane, self.decoded[step, -1])
            self.ended[step] = np.maximum(done + workload.optimizer_s * factors, start + workload.input_s)
            start = self.ended[step]
        return Timeline(
            self.scenario, self.method, self.workers,
            began=self.began[:, : self.kept], filled=self.filled, prepared=self.prepared, started=self.started,
            arrived=self.arrived, decoded=self.decoded, ended=self.ended[:, : self.kept],
            closed=self.ended.max(axis=1), sent_bytes=sum(journey.sent_bytes for journey in self.journeys),
            pace=float(self.compute.mean()),
        )  # fmt: skip

    def _backward(self, step: int, lane: Floats, factors: Floats) -> Floats:
        """Run the compute lane through all buckets, and the exchanges that it sets off."""
        for index, bucket in enumerate(self.scenario.workload.buckets):
            lane = self._compute(step, index, lane, bucket, factors)
            self.filled[step, :, index] = lane[: self.kept]
            if not self.whole:
                lane = self._exchange(step, index, lane, factors)
        return self._exchange(step, 0, lane, factors) if self.whole else lane

    def _compute(self, step: int, index: int, lane: Floats, bucket: Bucket, factors: Floats) -> Floats:
        """End the backward of one bucket; messages under way take their share of the device."""
        end: Floats = lane + bucket.backward_s * factors
        contention = self.scenario.device.contention
        if contention and index and not self.whole and self.workers > 1:
            starts, ends = self.started[step, :index], self.arrived[step, :index]
            end = end + contention * (_busy_before(end, starts, ends) - _busy_before(lane, starts, ends))
        return end

    def _exchange(self, step: int, index: int, lane: Floats, factors: Floats) -> Floats:
        """Prepare a message on the compute lane, and see when it arrives and is decoded."""
        journey = self.journeys[index]
        lane = lane + journey.prepare_s * factors
        self.prepared[step, :, index] = lane[: self.kept]
        free, decoder = (self.arrived[step, index - 1], self.decoded[step, index - 1]) if index else (0.0, 0.0)
        started = max(float(lane.max()), free)
        arrived = started + journey.network_s * self.network[step, index]
        self.started[step, index], self.arrived[step, index] = started, arrived
        self.decoded[step, index] = max(arrived, decoder) + journey.finish_s
        return lane


def _busy_before(times: Floats, starts: Floats, ends: Floats) -> Floats:
    """Return the seconds before each time in which the network was busy; intervals do not overlap."""
    total = np.concatenate(([0.0], np.cumsum(ends - starts)))
    grid = np.stack([starts, ends], axis=1).ravel()
    level = np.stack([total[:-1], total[1:]], axis=1).ravel()
    busy: Floats = np.interp(times, grid, level)
    return busy


LANES = ("compute", "network", "decode")


class Event(NamedTuple):
    """Something that took time.

    Attributes:
        worker: whose lane; the network is the same for all.
        lane: one of ``LANES``.
        name: ``forward``, ``backward``, ``select``, ``exchange``, ``decode`` or ``optimizer``.
        step: in which step.
        bucket: which exchange or bucket, or -1.
        start_s: from the start of the first step.
        end_s: likewise.
    """

    worker: int
    lane: str
    name: str
    step: int
    bucket: int
    start_s: float
    end_s: float


def events(timeline: Timeline) -> Iterator[Event]:
    """Yield the events of the traced workers, step by step."""
    for step in range(timeline.steps):
        for worker in range(timeline.began.shape[1]):
            yield from _compute_events(timeline, step, worker)
            yield from _exchange_events(timeline, step, worker)


def chrome_trace(timeline: Timeline) -> dict[str, Any]:
    """Return the timeline in Chrome's trace event format: a process for each worker, a thread for each lane.

    ``json.dump`` it, and open the file at chrome://tracing or ui.perfetto.dev. Times are microseconds.
    """
    rows: list[dict[str, Any]] = []
    for worker in range(timeline.began.shape[1]):
        rows.append({"ph": "M", "pid": worker, "name": "process_name", "args": {"name": f"worker {worker}"}})
        rows += [
            {"ph": "M", "pid": worker, "tid": tid, "name": "thread_name", "args": {"name": lane}}
            for tid, lane in enumerate(LANES)
        ]
    for event in events(timeline):
        label = event.name if event.bucket < 0 else f"{event.name} {event.bucket}"
        rows.append(
            {
                "ph": "X", "pid": event.worker, "tid": LANES.index(event.lane), "cat": event.name, "name": label,
                "ts": round(event.start_s * 1e6, 3), "dur": round((event.end_s - event.start_s) * 1e6, 3),
                "args": {"step": event.step},
            }
        )  # fmt: skip
    return {
        "traceEvents": rows,
        "displayTimeUnit": "ms",
        "otherData": {
            "method": timeline.method.name,
            "workers": timeline.workers,
            "model": timeline.scenario.workload.name,
            "cluster": timeline.scenario.cluster.name,
        },
    }


def chrome_trace_text(timeline: Timeline) -> str:
    """Return the trace as the text of a file."""
    return json.dumps(chrome_trace(timeline), separators=(",", ":")) + "\n"


def _compute_events(timeline: Timeline, step: int, worker: int) -> Iterator[Event]:
    workload = timeline.scenario.workload
    end = timeline.filled[step, worker]
    exchanges = timeline.prepared.shape[2]
    start = float(timeline.began[step, worker])
    for bucket in range(len(workload.buckets)):
        name = "backward"
        if bucket == 0:  # forward is not kept apart: it ends where the first backward, undisturbed, begins
            total = workload.forward_s + workload.buckets[0].backward_s
            middle = start + (float(end[0]) - start) * (workload.forward_s / total if total else 0)
            yield Event(worker, "compute", "forward", step, -1, start, middle)
            start = middle
        yield Event(worker, "compute", name, step, bucket, start, float(end[bucket]))
        start = float(end[bucket])
        last = bucket == len(workload.buckets) - 1
        if exchanges == len(workload.buckets) or last:
            exchange = bucket if exchanges == len(workload.buckets) else 0
            prepared = float(timeline.prepared[step, worker, exchange])
            if prepared > start:
                yield Event(worker, "compute", "select", step, exchange, start, prepared)
            start = prepared
    start = max(start, float(timeline.decoded[step, -1]))
    yield Event(worker, "compute", "optimizer", step, -1, start, float(timeline.ended[step, worker]))


def _exchange_events(timeline: Timeline, step: int, worker: int) -> Iterator[Event]:
    decoder = 0.0
    for exchange in range(timeline.started.shape[1]):
        started, arrived = float(timeline.started[step, exchange]), float(timeline.arrived[step, exchange])
        decoded = float(timeline.decoded[step, exchange])
        if arrived > started:
            yield Event(worker, "network", "exchange", step, exchange, started, arrived)
        begin = max(arrived, decoder)
        if decoded > begin:
            yield Event(worker, "decode", "decode", step, exchange, begin, decoded)
        decoder = decoded
