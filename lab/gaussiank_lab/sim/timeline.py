"""Backward, selection and messages of every bucket over time: what overlaps, what waits, what is left over.

Each worker has a compute lane: backward fills a bucket, then selects and encodes it, then goes on. All workers share a
network lane: the exchange of a bucket starts when the last worker is ready and the one before it has ended, as in one
ordered process group. A third lane decodes what has arrived. A step ends when a worker has done both.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .checks import require_at_least
from .machine import Bucket, Device, Workload
from .method import Journey, Method
from .overlap import Overlap
from .spread import Spread
from .topology import Cluster

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
