"""What a method does on a cluster, in numbers; and local steps between exchanges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gaussiank_lab.sim.curve import require_at_least
from gaussiank_lab.sim.method import Method
from gaussiank_lab.sim.timeline import Scenario, Timeline, simulate


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


def predict_local(
    scenario: Scenario, method: Method, workers: Sequence[int], every: int, *, seed: int = 0
) -> list[Prediction]:
    """Predict rounds of local steps with every number of workers, shared out over their steps.

    Args:
        scenario: model, device, cluster and distributions.
        method: how the difference is exchanged, and its name.
        workers: how many.
        every: steps a round.
        seed: of jitter and stragglers.
    """
    workload, found = scenario.workload, []
    for count in workers:
        cost = local_steps(scenario, method, count, every, seed=seed)
        journey = method.journey(workload.numel, scenario.device, scenario.cluster, count, scenario.overlap)
        step_s = max(cost.step_s, workload.input_s)
        epoch_s = workload.epoch_steps(count) * step_s
        found.append(
            Prediction(
                method.name,
                count,
                step_s,
                compute_s=workload.alone_s,
                select_s=journey.prepare_s / every,
                exposed_s=max(0.0, step_s - workload.alone_s - journey.prepare_s / every),
                network_s=journey.network_s / every,
                sent_bytes=journey.sent_bytes / every,
                efficiency=max(workload.alone_s, workload.input_s) / step_s,
                epoch_s=epoch_s,
                worker_hours=epoch_s * count / 3600,
            )
        )
    return found


class LocalRound(NamedTuple):
    """What a round of local steps costs.

    Attributes:
        step_s: seconds of a step, the exchange shared out over the round.
        compute_s: of a step of the slowest worker, averaged over a round.
        exchange_s: seconds of one exchange; nothing of it is hidden.
        sent_bytes: that a worker sends in one exchange.
        efficiency: seconds of one worker alone over ``step_s``.
    """

    step_s: float
    compute_s: float
    exchange_s: float
    sent_bytes: float
    efficiency: float


def local_steps(
    scenario: Scenario, method: Method, workers: int, every: int, *, rounds: int = 8, seed: int = 0
) -> LocalRound:
    """Cost rounds of ``every`` steps without communication and one exchange of the whole model.

    Jitter averages out within a round, so that more local steps also wait less for the slowest worker; a straggler
    stays one. What local steps do to convergence is not modelled.

    Args:
        scenario: model, device, cluster and distributions.
        method: how the difference to the last common parameters is exchanged.
        workers: how many, at least 1.
        every: steps a round, at least 1.
        rounds: simulated.
        seed: of jitter and stragglers.

    Raises:
        ValueError: a number below 1, or workers that do not fit the cluster.
    """
    require_at_least("every", every, 1, "1 exchanges at every step.")
    require_at_least("rounds", rounds, 1, "8 average jitter out.")
    workload, spread = scenario.workload, scenario.spread
    rng = np.random.default_rng([seed, 0])
    factors = spread.compute_factors(rng, workers, rounds)
    if spread.compute_cv:  # the sum of many independent steps: its deviation falls with their square root
        steady = np.where(rng.random(factors.shape[1]) < spread.straggler_share, spread.straggler_factor, 1.0)
        noise = rng.standard_normal(factors.shape) * spread.compute_cv / math.sqrt(every)
        factors = steady * np.maximum(0.0, 1.0 + noise)
    compute_s = workload.alone_s * float(factors.max(axis=1).mean())
    journey = method.journey(workload.numel, scenario.device, scenario.cluster, workers, scenario.overlap)
    exchange_s = journey.prepare_s + journey.network_s + journey.finish_s
    step_s = compute_s + exchange_s / every
    return LocalRound(step_s, compute_s, exchange_s, journey.sent_bytes, workload.alone_s / step_s)
