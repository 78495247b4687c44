"""Events of a timeline, and the file that Chrome's trace viewer and Perfetto show."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from .timeline import Timeline

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
