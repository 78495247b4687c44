"""Several runs in one table and on one page: each method is named by its run as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gaussiank.durable import write_whole
from gaussiank_lab.records import Records, read_records
from gaussiank_lab.report import report_html

COMPARISON_NAME = "comparison.html"
LONGEST_LABEL = 16
"""Characters of a run's name that a table of 80 columns and the margin of a figure have room for."""


def read_runs(run_dirs: Sequence[Path]) -> Records:
    """Read several runs as one, every method called ``method:run``, and settings that differ side by side.

    A run is called by the last parts of its path; where those are long, all are called A, B, C and so on, and
    ``Records.runs`` says which is which.

    Args:
        run_dirs: directories that train has written, at least one.

    Raises:
        FileNotFoundError: a directory holds no records.
        ValueError: records that cannot be read, runs that are judged by different metrics, or one run given twice.
    """
    names = _labels(run_dirs)
    long = max(map(len, names)) > LONGEST_LABEL
    labels = [_letters(index) for index in range(len(names))] if long else names
    runs = {label: read_records(run_dir) for label, run_dir in zip(labels, run_dirs, strict=True)}
    metrics = {label: records.metric for label, records in runs.items()}
    first = next(iter(metrics))
    for label, metric in metrics.items():
        if metric.key != metrics[first].key:
            raise ValueError(
                f"runs must be judged by the same metric, got {metrics[first].name} in {first} and {metric.name} in "
                f"{label}. Compare runs of one task."
            )
    return Records(
        path=run_dirs[0],
        run=_joined_run({label: records.run for label, records in runs.items()}),
        steps=[named for label, records in runs.items() for named in _named(records.steps, label)],
        evals=[named for label, records in runs.items() for named in _named(records.evals, label)],
        methods=[named for label, records in runs.items() for named in _named(records.methods, label)],
        truncated=any(records.truncated for records in runs.values()),
        runs=dict(zip(labels, map(str, run_dirs), strict=True)) if long else {},
    )


def write_comparison(records: Records, out: Path) -> Path:
    """Write the page about several runs; an existing one is replaced.

    Args:
        records: what ``read_runs`` returned.
        out: file to write.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, report_html(records).encode("utf-8", "xmlcharrefreplace"))
    return out


def _labels(run_dirs: Sequence[Path]) -> list[str]:
    """Name each run by as few last parts of its path as tell all apart."""
    paths = [run_dir.resolve() for run_dir in run_dirs]
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"runs must differ, got {path} twice. Name each once.")
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        labels = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(labels)) == len(labels):
            return labels
    return [str(path) for path in paths]


def _letters(index: int) -> str:
    """Return A to Z, then A1, B1 and so on."""
    turn, letter = divmod(index, 26)
    return f"{chr(ord('A') + letter)}{turn or ''}"


def _named(records: Sequence[Mapping[str, Any]], label: str) -> list[dict[str, Any]]:
    return [{**record, "method": f"{record['method']}:{label}"} for record in records]


def _joined_run(runs: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    first = next(iter(runs.values()))
    joined = {key: _joined([run.get(key) for run in runs.values()]) for key in first}
    configs = {label: run["config"] for label, run in runs.items() if isinstance(run.get("config"), dict)}
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    config = {key: _joined([config.get(key) for config in configs.values()]) for key in keys}
    config["methods"] = [
        f"{method}:{label}" for label, own in configs.items() for method in own.get("methods") or () if method
    ]
    commands = dict.fromkeys(str(run.get("command", "")) for run in runs.values())
    return {**joined, "metric": first.get("metric"), "config": config, "command": "\n".join(filter(None, commands))}


def _joined(values: Sequence[Any]) -> Any:
    """Return the value if all are the same; dictionaries are joined key by key, other values as texts."""
    if all(value == values[0] for value in values):
        return values[0]
    if all(isinstance(value, dict) for value in values):
        return {key: _joined([value.get(key) for value in values]) for key in values[0]}
    return " | ".join("none" if value is None else str(value) for value in values)
