"""The HTML page of a run, and of several compared."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from gaussiank.durable import write_whole
from gaussiank_lab.report.plots import (
    figure_svg,
    kept_over_steps,
    loss_over_steps,
    method_styles,
    metric_over_bytes,
    metric_over_steps,
    norms_over_rounds,
    time_per_step,
)
from gaussiank_lab.report.records import Records, number, read_records
from gaussiank_lab.report.summary import MISSING, bytes_text, headers, ms_text, summary_rows, times_text

REPORT_NAME = "report.html"
FIGURES = (
    (
        metric_over_bytes,
        "{Metric} for traffic",
        "Further left is less traffic for the same {metric}; the axis is logarithmic.",
    ),
    (
        metric_over_steps,
        "Test {metric} over steps",
        "Each point is the test set, read after that many steps.",
    ),
    (
        loss_over_steps,
        "Training loss",
        "Faint: every step; strong: the moving mean over a fortieth of the run.",
    ),
    (
        kept_over_steps,
        "Entries kept",
        "Entries chosen over entries asked for: 1 is exact, "
        "and the band from 2/3 to 4/3 is what the published Gaussian_k aims at.",
    ),
    (
        norms_over_rounds,
        "Rounds of local steps",
        "Strong: norm of what a worker learnt since the last round; faint: norm of what waits in its residual.",
    ),
    (
        time_per_step,
        "Time of a step",
        "Medians on the machine named below; “other” is what the three measured parts leave over.",
    ),
)


def write_report(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Write the HTML report of a run.

    The page holds its styles and figures and refers to nothing outside itself. It is written under a temporary name and
    renamed, so a reader never sees half a page; an existing report is replaced.

    Args:
        run_dir: Directory with ``records.jsonl``, of a finished or a killed run.
        out: File to write; ``RUN/report.html`` by default. Its directory is created when missing.

    Returns:
        The path written.

    Raises:
        FileNotFoundError: The directory holds no records.
        ValueError: The records cannot be read.
    """
    path = Path(run_dir) / REPORT_NAME if out is None else Path(out)
    page = report_html(read_records(run_dir))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page.encode("utf-8", "xmlcharrefreplace"))
    return path


def write_figures(run_dir: str | Path, out: str | Path) -> list[Path]:
    """Write each figure of a run as an SVG file of its own, for a page or a slide; existing ones are replaced.

    Args:
        run_dir: Directory with ``records.jsonl``.
        out: Directory to write to; created when missing.

    Returns:
        The paths written, such as ``OUT/accuracy-over-bytes.svg``.

    Raises:
        FileNotFoundError: The directory holds no records.
        ValueError: The records cannot be read.
    """
    records, out = read_records(run_dir), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for draw, _, _ in FIGURES:
        if draw is norms_over_rounds and not records.rounds:
            continue
        path = out / f"{draw.__name__.replace('_', '-')}.svg"
        svg = figure_svg(draw(records))
        text = svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"
        write_whole(path, text.encode())
        paths.append(path)
    return paths


def report_html(records: Records) -> str:
    """Return the page as text, everything from the records escaped."""
    template = files("gaussiank_lab.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    # A long method name may wrap after its colon and commas only.
    environment.filters["parts"] = partial(re.split, r"(?<=[:,])")
    metric = records.metric
    words = {"metric": metric.name, "Metric": metric.name.capitalize()}
    drawn = [(draw(records), heading.format(**words), caption.format(**words)) for draw, heading, caption in FIGURES]
    return environment.from_string(template).render(
        headline=headline(records),
        setting=setting(records),
        remarks=_remarks(records),
        runs=records.runs,
        rows=summary_rows(records),
        headers=[header.replace("compression", "com\u00adpression").split("\n") for header in headers(records)],
        metric=metric,
        styles=method_styles(records),
        # Only figure_svg's own output stands unescaped: it holds outlines, and its label is escaped.
        figures=[
            (Markup(figure_svg(figure)), heading, caption)
            for figure, heading, caption in drawn
            if figure.axes[0].has_data()
        ],
        config=_settings(records),
        origin=_origin(records),
        command=str(records.run.get("command", "")),
        digests=[(record["method"], str(record["digest"])) for record in records.methods if "digest" in record],
    )


def headline(records: Records) -> str:
    """Say in one sentence what the run found: the best result of a sparse method and the traffic it saved.

    Traffic is compared with what the dense method of the run sent; without one, with what it would have sent.
    """
    if not records.methods:
        return "No method finished in this run."
    sound = [record for record in records.methods if not records.diverged(record["method"])]
    sparse = [record for record in sound if not _is_dense(record)]
    dense = next((record for record in records.methods if _is_dense(record)), None)
    if not sparse:
        if dense is None or dense not in sound:
            return "Every method that finished diverged."
        traffic = bytes_text(number(dense, "sent_bytes"))
        return f"{dense['method']} reached {_judged(records, dense)}, sending {traffic} per worker and step."
    best = max(sparse, key=lambda record: (_rank(records, record), _ordered(number(record, "compression"))))
    result = f"{best['method']} reached {_judged(records, best)}"
    other = _judged(records, dense) if dense is not None and dense in sound else "diverged"
    dense_bytes = number(best, "dense_bytes") if dense is None else number(dense, "sent_bytes")
    if dense_bytes > 0 and number(best, "sent_bytes") > 0:
        factor = dense_bytes / number(best, "sent_bytes")
        saved = f"{times_text(factor)} less traffic than" if factor >= 1 else f"{times_text(1 / factor)} the traffic of"
        return f"{result} with {saved} {f'dense ({other})' if dense is not None else 'a dense all-reduce'}."
    return f"{result} and dense {other}." if dense is not None else f"{result}."


def setting(records: Records) -> str:
    """Name model, data, workers and density in a line, as far as the records hold them."""
    config = dict(_settings(records))
    parts = [" on ".join(config[key] for key in ("model", "dataset") if config.get(key))]
    if workers := config.get("workers"):
        parts.append(f"{workers} worker{'s' if workers != '1' else ''}")
    parts += [
        f"{key} {config[key]}"
        for key in ("density", "epochs", "steps", "seed")
        if config.get(key) not in (None, "none")
    ]
    return ", ".join(part for part in parts if part)


def _remarks(records: Records) -> list[str]:
    remarks = [f"{name} diverged: a loss was not finite." for name in records.names if records.diverged(name)]
    remarks += [line for name in records.names if (line := _rounds_of(records, name))]
    if records.unfinished:
        remarks.append(f"Not finished: {', '.join(records.unfinished)}.")
    if records.truncated:
        remarks.append("The last record was cut short, as when a run is killed; it is left out here.")
    return remarks


def _rounds_of(records: Records, name: str) -> str:
    """Say how many rounds a method of local steps had, their bytes and seconds, and what of these was overlapped."""
    columns = [records.columns(name, key, kind="round")[0] for key in ("sent_bytes", "round_s", "waited_s")]
    if not columns[0].size:
        return ""
    sent, round_s, waited_s = (float(np.nanmedian(one)) if np.isfinite(one).any() else math.nan for one in columns)
    overlap = f", {max(0.0, 100 * (1 - waited_s / round_s)):.0f} % of it overlapped" if round_s > 0 else ""
    return (
        f"{name}: {columns[0].size:,} rounds, {bytes_text(sent)} sent by a worker and {ms_text(round_s)} ms in the "
        f"median{overlap}."
    )


def _origin(records: Records) -> list[tuple[str, str]]:
    """List when, on what and with which versions the run was made."""
    run = records.run
    model = dict(_pairs(run.get("model")))
    pairs = [("started", _text(run.get("started")))]
    if "numel" in model:
        pairs.append(("parameters", f"{number(run['model'], 'numel'):,.0f}"))
    pairs += [(f"data {key}", value) for key, value in _pairs(run.get("data"))]
    pairs += _pairs(run.get("machine"))
    return pairs + [(key, _text(run.get(key))) for key in ("torch", "gaussiank")]


def _settings(records: Records) -> list[tuple[str, str]]:
    """List the settings; of epochs and steps, those that say how long the run was."""
    pairs = _pairs(records.run.get("config"))
    idle = {"none": "steps"}.get(dict(pairs).get("steps", "none"), "epochs")
    both = "|" in dict(pairs).get("steps", "")  # runs that are compared, some by steps and some by epochs
    return [(key, value) for key, value in pairs if both or key != idle]


def _pairs(value: object) -> list[tuple[str, str]]:
    return [(str(key), _text(item)) for key, item in value.items()] if isinstance(value, dict) else []


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return value if isinstance(value, str) else json.dumps(value)


def _judged(records: Records, record: dict[str, Any]) -> str:
    metric = records.metric
    return (metric.text(number(record, metric.key)) or MISSING).replace(" ", "\u00a0")


def _rank(records: Records, record: dict[str, Any]) -> float:
    value = number(record, records.metric.key)
    return _ordered(value if records.metric.higher_is_better else -value)


def _ordered(value: float) -> float:
    return value if value == value else -math.inf


def _is_dense(record: dict[str, Any]) -> bool:
    return str(record["method"]).partition(":")[0] == "dense"


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
