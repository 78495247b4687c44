"""The few numbers that a user asks for, from a simulated timeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .method import Method
from .timeline import Scenario, Timeline, simulate


@dataclass(frozen=True)
class Prediction:
    """What one method does with one number of workers.

    Attributes:
        method: its name.
        workers: how many.
        step_s: mean seconds of a step.
        compute_s: seconds of forward, backward and optimizer of an average worker.
        select_s: seconds of selection and encoding.
        exposed_s: the rest: waiting for messages, for decoding and for slower workers.
        network_s: seconds that messages are under way, hidden behind backward or not.
        sent_bytes: that a worker sends in a step.
        efficiency: seconds of an average worker alone, with the same jitter, over ``step_s``.
        epoch_s: seconds of an epoch.
        worker_hours: of an epoch, over all workers.
    """

    method: str
    workers: int
    step_s: float
    compute_s: float
    select_s: float
    exposed_s: float
    network_s: float
    sent_bytes: float
    efficiency: float
    epoch_s: float
    worker_hours: float


def summarise(timeline: Timeline) -> Prediction:
    """Reduce a timeline to what a user asks for."""
    workload, step_s = timeline.scenario.workload, timeline.step_s
    select_s = sum(
        timeline.method.journey(
            numel, timeline.scenario.device, timeline.scenario.cluster, timeline.workers, timeline.scenario.overlap
        ).prepare_s
        for numel in _vectors(timeline)
    )
    alone_s = max(workload.input_s, workload.alone_s * timeline.pace)
    epoch_s = workload.epoch_steps(timeline.workers) * step_s
    return Prediction(
        timeline.method.name,
        timeline.workers,
        step_s,
        compute_s=alone_s,
        select_s=select_s,
        exposed_s=max(0.0, step_s - alone_s - select_s),
        network_s=float((timeline.arrived - timeline.started).sum() / timeline.steps),
        sent_bytes=timeline.sent_bytes,
        efficiency=alone_s / step_s,
        epoch_s=epoch_s,
        worker_hours=epoch_s * timeline.workers / 3600,
    )


def predict(
    scenario: Scenario, methods: Sequence[Method], workers: Sequence[int], *, steps: int = 20, seed: int = 0
) -> list[Prediction]:
    """Predict every method with every number of workers.

    Args:
        scenario: model, device, cluster and distributions.
        methods: how gradients are exchanged.
        workers: how many.
        steps: simulated for each; one is enough where nothing is random.
        seed: of jitter and stragglers.
    """
    random = scenario.spread.varies or scenario.spread.network_cv > 0
    return [
        summarise(simulate(scenario, method, count, steps=steps if random else 1, seed=seed, traced=1))
        for count in workers
        for method in methods
    ]


def _vectors(timeline: Timeline) -> list[int]:
    workload, method = timeline.scenario.workload, timeline.method
    if method.scope == "model" and not method.sends_all:
        return [workload.numel]
    return [bucket.numel for bucket in workload.buckets]
