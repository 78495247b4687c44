"""``gaussiank advise``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gaussiank_lab.cli.simulate import GBIT, MODEL, PER_NODE, PRESET, PROBE, ROUND_TRIP_MS, STEP_MS


def advise(
    preset: Annotated[str | None, PRESET] = None,
    probe: Annotated[Path | None, PROBE] = None,
    model: Annotated[str | None, MODEL] = None,
    workers: Annotated[
        int | None, typer.Option(help="Number of workers; by default that of the preset or probe.")
    ] = None,
    gbit: Annotated[float | None, GBIT] = None,
    per_node: Annotated[int | None, PER_NODE] = None,
    round_trip_ms: Annotated[float | None, ROUND_TRIP_MS] = None,
    step_ms: Annotated[float | None, STEP_MS] = None,
    density: Annotated[float | None, typer.Option(help="Consider this density only.")] = None,
    adamw_steps: Annotated[
        int | None,
        typer.Option(help="For a transformer trained by AdamW for so many steps: method, code, price in nats.", min=1),
    ] = None,
    fsdp: Annotated[
        bool, typer.Option("--fsdp", help="With --adamw-steps: sharded by fully_shard (FSDP2) inside each machine.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
    apply: Annotated[
        Path | None, typer.Option(help="Write the recommended settings to this file, for train --config.")
    ] = None,
) -> None:
    """Tell whether to compress on a cluster, with which method, density, codec and collective, and why."""
    from gaussiank_lab.cluster import advise as command
    from gaussiank_lab.cluster.adamw import Case, show_adamw
    from gaussiank_lab.cluster.advice import advise as consider
    from gaussiank_lab.cluster.scenario import between_nodes, resolve

    setting = resolve(preset, probe, model, gbit, per_node, round_trip_ms, step_ms)
    count = setting.workers if workers is None else workers
    adamw: Case | None = None
    if adamw_steps is not None:
        for argument, value in (("density", density), ("apply", apply)):
            if value is not None:
                raise ValueError(f"{argument} must be left out with adamw_steps, got {value}. It chooses by itself.")
        seen, replicas, shards = between_nodes(setting, count) if fsdp else (setting, count, 1)
        adamw = Case(seen, replicas, adamw_steps, shards)
    elif fsdp:
        raise ValueError("fsdp must come with adamw_steps, got none. Give --adamw-steps 20000, for example.")
    if adamw is not None and not as_json:
        show_adamw(Console(), adamw)
        return
    advice = consider(setting, count, density)
    if as_json:
        typer.echo(command.advice_text(setting, count, advice, adamw))
    else:
        command.show_advice(Console(), setting, count, advice)
    if apply is not None:
        said = command.apply_advice(apply, setting, count, advice)
        typer.echo(f"Written: {apply}\n{said}", err=as_json)
