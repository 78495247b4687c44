"""``gaussiank advise``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gaussiank_lab.cli.simulate import GBIT, MODEL, PER_NODE, PRESET, PROBE


def advise(
    preset: Annotated[str | None, PRESET] = None,
    probe: Annotated[Path | None, PROBE] = None,
    model: Annotated[str | None, MODEL] = None,
    workers: Annotated[
        int | None, typer.Option(help="Number of workers; by default that of the preset or probe.")
    ] = None,
    gbit: Annotated[float | None, GBIT] = None,
    per_node: Annotated[int | None, PER_NODE] = None,
    density: Annotated[float | None, typer.Option(help="Consider this density only.")] = None,
    adamw_steps: Annotated[
        int | None,
        typer.Option(help="For a transformer trained by AdamW for so many steps: method, code, price in nats.", min=1),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    apply: Annotated[
        Path | None, typer.Option(help="Write the recommended settings to this file, for train --config.")
    ] = None,
) -> None:
    """Tell whether to compress on a cluster, with which method, density, codec and collective, and why."""
    from gaussiank_lab.cluster import advise as command
    from gaussiank_lab.cluster.advice import advise as consider
    from gaussiank_lab.cluster.scenario import resolve

    setting = resolve(preset, probe, model, gbit, per_node)
    count = setting.workers if workers is None else workers
    if adamw_steps is not None:
        for argument, value in (("density", density), ("apply", apply)):
            if value is not None:
                raise ValueError(f"{argument} must be left out with adamw_steps, got {value}. It chooses by itself.")
        if not setting.scenario.workload.name.startswith("transformer"):
            raise ValueError(
                f"model must be a transformer with adamw_steps, got {setting.scenario.workload.name}. What AdamW costs "
                "was measured on transformers alone."
            )
    advice = consider(setting, count, density)
    if as_json:
        typer.echo(command.advice_text(setting, count, advice, adamw_steps))
    elif adamw_steps is not None:
        command.show_adamw(Console(), setting, count, adamw_steps)
    else:
        command.show_advice(Console(), setting, count, advice)
    if apply is not None:
        said = command.apply_advice(apply, setting, count, advice)
        typer.echo(f"Written: {apply}\n{said}", err=as_json)
