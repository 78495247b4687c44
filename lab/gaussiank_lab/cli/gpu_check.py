"""``gaussiank gpu-check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gaussiank_lab.cli.command import parts as split


def gpu_check(
    parts: Annotated[
        str | None, typer.Option(help="Parts to run: order, fault, bits, waits, speed, nccl, two_ranks, graph (all).")
    ] = None,
    out: Annotated[Path, typer.Option(help="Directory to write to.")] = Path("gpu-check"),
) -> None:
    """Check on this machine's GPU what was tested on a simulated one: memory, bits, waits, speed, NCCL, graphs.

    Takes less than nine minutes on one card, and writes a JSON file and a page; results/gpu/README.md says how to send
    them. The status is 1 where something is wrong.
    """
    from gaussiank_lab.gpu_check.run import require_gpu, run

    require_gpu()
    raise typer.Exit(run(out, split(parts or ""), tell=typer.echo))
