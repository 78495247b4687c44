"""What the page shows: the state of each method, boiled down from the records."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from gaussiank_lab.metric import Metric
from gaussiank_lab.records import number
from gaussiank_lab.summary import MISSING, bytes_text, ms_text, times_text

POINTS = 240
"""Points of a curve; a longer one is averaged in as many parts."""
RECENT = 50
"""Steps that the time left is reckoned from."""

Record = dict[str, Any]
Points = list[list[float]]


def state_of(records: Sequence[Record]) -> dict[str, Any]:
    """Boil records down to JSON values for the page.

    Args:
        records: of one run, in the order written; any of them may still be missing.
    """
    run = next((record for record in records if record["kind"] == "run"), {})
    metric = Metric.from_record(run.get("metric"))
    config = run.get("config") if isinstance(run.get("config"), dict) else {}
    assert isinstance(config, dict)  # for the type checker: it has just been made one
    asked = config.get("methods") if isinstance(config.get("methods"), list) else []
    by_method: dict[str, list[Record]] = {str(name): [] for name in asked or []}
    for record in records:
        if isinstance(record.get("method"), str):
            by_method.setdefault(record["method"], []).append(record)
    methods = [_method(name, own, metric) for name, own in by_method.items()]
    saved = [record for record in records if record["kind"] == "checkpoint"]
    return {
        "headline": _headline(methods),
        "setting": ", ".join(f"{key} {config[key]}" for key in _SHOWN if config.get(key) not in (None, "none")),
        "metric": f"{metric.name} ({metric.unit})" if metric.unit else metric.name,
        "judged": metric.name,
        "methods": methods,
        "checkpoint": _checkpoint(saved[-1]) if saved else "",
        "resumed": sum(record["kind"] == "resume" for record in records),
        "command": str(run.get("command", "")),
    }


_SHOWN = ("model", "dataset", "workers", "density", "precision", "seed")


def _method(name: str, records: list[Record], metric: Metric) -> dict[str, Any]:
    steps = [record for record in records if record["kind"] == "step"]
    evals = [record for record in records if record["kind"] == "eval"]
    finished = any(record["kind"] == "method" for record in records)
    begun = next((record for record in reversed(records) if record["kind"] == "begin"), {})  # a resume begins again
    last: Record = steps[-1] if steps else {}
    done, total = number(last, "step"), number(begun, "steps")
    step_s = statistics.median([number(step, "step_s") for step in steps[-RECENT:]]) if steps else math.nan
    left_s = (total - done) * step_s
    judged = metric.text(number(evals[-1], metric.key)) if evals else ""
    averaged = metric.text(number(evals[-1], f"ema_{metric.key}")) if evals else ""
    kept = number(last, "kept") / number(last, "k") if number(last, "k") > 0 else math.nan
    return {
        "name": name,
        "state": "finished" if finished else "running" if steps else "waiting",
        "done": int(done) if steps else 0,
        "steps": int(total) if math.isfinite(total) else None,
        "loss": _plain(number(last, "loss"), ".3f") if steps else MISSING,
        "metric": (judged or MISSING) + (f" (average of weights {averaged})" if averaged else ""),
        "kept": _plain(kept, ".2f"),
        "sent": bytes_text(number(last, "sent_bytes")),
        "compression": times_text(number(last, "dense_bytes") / number(last, "sent_bytes"))
        if number(last, "sent_bytes") > 0
        else MISSING,
        "step_ms": ms_text(step_s),
        "left": "" if finished or not math.isfinite(left_s) else _duration(left_s),
        "loss_curve": _thinned([[number(step, "step"), number(step, "loss")] for step in steps]),
        "metric_curve": _finite([[number(e, "step"), metric.scale * number(e, metric.key)] for e in evals]),
    }


def _headline(methods: list[dict[str, Any]]) -> str:
    running = [method for method in methods if method["state"] == "running"]
    if running:
        now = running[-1]
        of = f" of {now['steps']:,}" if now["steps"] else ""
        left = f", about {now['left']} left" if now["left"] else ""
        return f"{now['name']}: step {now['done']:,}{of}{left}"
    if methods and all(method["state"] == "finished" for method in methods):
        return "Finished"
    return "Waiting for the first step"


def _checkpoint(record: Record) -> str:
    size, seconds = bytes_text(number(record, "size_bytes")), number(record, "seconds")
    return f"{record.get('method')} after step {record.get('step')}: {size} in {ms_text(seconds)} ms"


def _thinned(points: Points) -> Points:
    """Average neighbours until there are few enough points."""
    points = _finite(points)
    size = -(-len(points) // POINTS)
    parts = [points[start : start + size] for start in range(0, len(points), size or 1)]
    return [[statistics.fmean(column) for column in zip(*part, strict=True)] for part in parts]


def _finite(points: Points) -> Points:
    return [point for point in points if all(map(math.isfinite, point))]


def _plain(value: float, form: str) -> str:
    return f"{value:{form}}" if math.isfinite(value) else "diverged" if form == ".3f" else MISSING


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
