"""Cluster cost model: links, collectives, and the timeline of a training step. Needs no torch."""

from __future__ import annotations

from gaussiank.cost import ring_bytes

from .collectives import COLLECTIVES, Cost, Load
from .curve import Curve
from .fit import fit_cluster, fit_link, operation_s
from .link import Link
from .local_steps import LocalSteps, local_steps
from .machine import Bucket, Device, Workload
from .method import RAW, Journey, Method
from .operations import all_gather_s, all_reduce_s, all_to_all_s, broadcast_s
from .overlap import Overlap
from .prediction import Prediction, predict, summarise
from .spread import Spread
from .timeline import Scenario, Timeline, simulate
from .topology import ALGORITHMS, OPERATIONS, STRAIGHT_BYTES, Cluster, Level, Tier
from .trace import Event, chrome_trace, chrome_trace_text, events
from .wire import Wire, fixed_bits

__all__ = [
    "ALGORITHMS",
    "COLLECTIVES",
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
    "LocalSteps",
    "Method",
    "Overlap",
    "Prediction",
    "Scenario",
    "Spread",
    "Tier",
    "Timeline",
    "Wire",
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
    "ring_bytes",
    "simulate",
    "summarise",
]
