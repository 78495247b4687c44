"""``gaussiank probe``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def probe(
    model: Annotated[str, typer.Option(help="Model to measure.")] = "lenet5",
    batch_size: Annotated[int, typer.Option(help="Examples per worker and step.")] = 32,
    workers: Annotated[
        int | None, typer.Option(help="Local processes to start (4); under torchrun, torchrun's number is used.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer runs and smaller sizes, for a first look.")] = False,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("probe.json"),
) -> None:
    """Measure this machine or, under torchrun, this cluster: links, the model's buckets, selection and codec.

    Takes about half a minute for a small model. simulate and advise read the file with --probe.
    """
    from gaussiank_lab.cluster.probe import QUICK, Effort, require_measurable, run_probe
    from gaussiank_lab.launch import launch, world_size

    count = world_size(workers)
    require_measurable(model, batch_size, count, device)
    launch(run_probe, count, model, batch_size, device, out, QUICK if quick else Effort())
