"""What ``gaussiank probe`` does: every worker measures, rank 0 writes the file and says what it found."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path

import torch
import torch.distributed as dist
from rich.console import Console

import gaussiank
from gaussiank.environment import number_from
from gaussiank_lab.machine import cpu_name
from gaussiank_lab.models import MODELS

from .probe_file import MEASURED_DENSITY, Points, Probe, read_probe, write_probe
from .probe_links import measure_contention, measure_links, node_group
from .probe_model import ModelTimes, measure_model
from .probe_work import measure_curves, measure_exchanges, measure_selection
from .stopwatch import Effort
from .tables import bits_text, count_text, plain_table, seconds_text


def require_measurable(model: str, batch_size: int, workers: int, device: str) -> None:
    """Raise what every worker would raise, before any of them is started.

    Raises:
        ValueError: an unknown model or device, or a number below 1.
    """
    if model not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {model!r}. Correct it.")
    for argument, value in (("batch_size", batch_size), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{argument} must be at least 1, got {value}. Raise it.")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {device!r}. Choose one of them.")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device must be cpu where torch sees no CUDA, got 'cuda'. Leave it out.")


def run_probe(model: str, batch_size: int, device_name: str, out: Path, effort: Effort) -> None:
    """Measure and write; within a process group.

    Args:
        model: key of the lab's ``MODELS``.
        batch_size: examples a worker and step.
        device_name: ``cpu`` or ``cuda``.
        out: file that rank 0 writes.
        effort: how long to measure.
    """
    device = torch.device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(number_from("LOCAL_RANK", 0))
        device = torch.device("cuda", torch.cuda.current_device())
    times = measure_model(model, batch_size, device, effort)
    links = measure_links(device, effort)
    node = node_group()
    links_inside = {} if node is None else measure_links(device, effort, node)
    longest = sum(times.numels)
    probe = _probe(
        model, batch_size, device, effort, times, (links, links_inside),
        {name: _averaged(points) for name, points in measure_selection(longest, device, effort).items()},
        {name: _averaged(points) for name, points in measure_curves(longest, device, effort).items()},
        measure_exchanges(longest, device, effort),
    )  # fmt: skip
    if dist.get_rank() == 0:
        write_probe(out, probe)
        show_probe(Console(), read_probe(out), out)


def _probe(
    model: str,
    batch_size: int,
    device: torch.device,
    effort: Effort,
    times: ModelTimes,
    links: tuple[dict[str, Points], dict[str, Points]],
    select: dict[str, Points],
    curves: dict[str, Points],
    exchanges: dict[str, Points],
) -> Probe:
    measured = _mean([times.forward_s, times.optimizer_s, times.compute_cv, *times.backward_s])
    matrix = torch.rand(400, 400, device=device)
    contention = measure_contention(lambda: [matrix @ matrix for _ in range(40)], device, effort)
    return Probe(
        gaussiank=gaussiank.__version__,
        date=f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}",
        machine=f"{_device_name(device)}, {os.cpu_count()} cores, {platform.system()}, torch {torch.__version__}",
        workers=dist.get_world_size(),
        workers_per_node=number_from("LOCAL_WORLD_SIZE", dist.get_world_size(), least=1),
        device=device.type,
        model=model,
        batch_size=batch_size,
        epoch_samples=times.epoch_samples,
        forward_s=measured[0],
        optimizer_s=measured[1],
        buckets=tuple(zip(map(float, times.numels), measured[3:], strict=True)),
        links=links[0],
        links_inside=links[1],
        select=_without_encoding(select, curves["encode"]),
        curves=curves,
        exchanges=exchanges,
        contention=min(contention, 1.0),
        compute_cv=min(measured[2], 0.5),
    )


def _without_encoding(select: dict[str, Points], encode: Points) -> dict[str, Points]:
    """Take the encoding out of the selection: the model adds it for the entries that are really sent."""
    from gaussiank_lab.sim import Curve

    encode_s = Curve.of(encode)
    return {
        name: tuple(
            (numel, max(0.2 * seconds, seconds - encode_s(max(1, MEASURED_DENSITY * numel)))) for numel, seconds in row
        )
        for name, row in select.items()
    }


def _averaged(points: Points) -> Points:
    return tuple(zip((size for size, _ in points), _mean([seconds for _, seconds in points]), strict=True))


def _mean(values: list[float]) -> list[float]:
    """Average over workers."""
    table = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(table)
    return [float(value) for value in table / dist.get_world_size()]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def show_probe(console: Console, probe: Probe, path: Path) -> None:
    """Print what was found, in a few lines."""
    backward_s = sum(seconds for _, seconds in probe.buckets)
    numel = sum(numel for numel, _ in probe.buckets)
    console.print(
        f"{probe.model}, {count_text(numel)} parameters in {len(probe.buckets)} buckets, batch {probe.batch_size}: "
        f"forward {seconds_text(probe.forward_s)}, backward {seconds_text(backward_s)}, optimizer "
        f"{seconds_text(probe.optimizer_s)}; {probe.workers} workers on {probe.machine}\n",
        highlight=False,
    )
    if probe.links:
        sizes = [size for size, _ in max(probe.links.values(), key=len)]
        table = plain_table("Messages, slowest worker", ("", *(f"{size / 1000:g} kB" for size in sizes)))
        for name, points in probe.links.items():
            table.add_row(name, *(seconds_text(seconds) for _, seconds in points))
        console.print(table)
        for tier in probe.setting(str(path)).scenario.cluster.tiers:
            link = tier.link
            fitted = f"{seconds_text(link.latency_s)} a message, {bits_text(link.bandwidth_bits_s)}"
            console.print(f"As {link.name}: {fitted}", highlight=False)
        whole = ", ".join(f"{name} {seconds_text(points[0][1])}" for name, points in probe.exchanges.items())
        console.print(f"Whole exchanges at density {MEASURED_DENSITY:g}: {whole}", highlight=False)
        console.print(f"Backward loses {probe.contention:.2f} s a second of messages.\n", highlight=False)
    table = plain_table("Own work", ("", *(count_text(size) for size, _ in next(iter(probe.select.values())))))
    for name, points in probe.select.items():
        table.add_row(f"select {name}", *(seconds_text(seconds) for _, seconds in points))
    console.print(table)
    console.print(f"\nWritten: {path}. Next: gaussiank advise --probe {path}", soft_wrap=True, highlight=False)
