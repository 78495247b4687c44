"""Cluster cost model: links, collectives, and the timeline of a training step. Needs no torch."""

from __future__ import annotations

from gaussiank.cost import ring_bytes
from gaussiank_lab.sim.curve import HEADER_BYTES, Curve, Overlap, WireSize, fixed_bits
from gaussiank_lab.sim.prediction import LocalRound, Prediction, local_steps, predict, predict_local, summarise
from gaussiank_lab.sim.timeline import Event, Scenario, Timeline, chrome_trace, chrome_trace_text, events, simulate
from gaussiank_lab.sim.topology import (
    ALGORITHMS,
    OPERATIONS,
    STRAIGHT_BYTES,
    Bucket,
    Cluster,
    Device,
    Level,
    Link,
    Spread,
    Tier,
    Workload,
)

from .collectives import COLLECTIVES, Cost, Load
from .fit import fit_cluster, fit_link, operation_s
from .method import RAW, Journey, Method
from .operations import all_gather_s, all_reduce_s, all_to_all_s, broadcast_s

__all__ = [
    "ALGORITHMS",
    "COLLECTIVES",
    "HEADER_BYTES",
    "OPERATIONS",
    "RAW",
    "STRAIGHT_BYTES",
    "Bucket",
    "Cluster",
    "Cost",
    "Curve",
    "Device",
    "Event",
    "Journey",
    "Level",
    "Link",
    "Load",
    "LocalRound",
    "Method",
    "Overlap",
    "Prediction",
    "Scenario",
    "Spread",
    "Tier",
    "Timeline",
    "WireSize",
    "Workload",
    "all_gather_s",
    "all_reduce_s",
    "all_to_all_s",
    "broadcast_s",
    "chrome_trace",
    "chrome_trace_text",
    "events",
    "fit_cluster",
    "fit_link",
    "fixed_bits",
    "local_steps",
    "operation_s",
    "predict",
    "predict_local",
    "ring_bytes",
    "simulate",
    "summarise",
]
