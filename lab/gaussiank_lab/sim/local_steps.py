"""Local steps: workers train alone for a while and exchange what they have learned, as between distant regions."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .checks import require_at_least
from .method import Method
from .timeline import Scenario


class LocalSteps(NamedTuple):
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
) -> LocalSteps:
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
    return LocalSteps(step_s, compute_s, exchange_s, journey.sent_bytes, workload.alone_s / step_s)
