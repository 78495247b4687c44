"""From ``--preset`` or ``--probe``, and ``--model``, to what is simulated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from gaussiank_lab.sim import Cluster, Curve, Overlap, Scenario, Tier

from .presets import TCP_SHARE, Preset, Uncertainty, find_preset
from .shapes import find_shape

OVERLAP = Overlap(measured=Curve.of([(1, 1.0), (2, 1.88), (4, 3.42), (8, 6.05), (16, 10.1)]))
"""Union of real selections over k, by workers: benchmarks/selection_overlap.py, mean of LeNet-5 and FNN-3.

Both at densities 0.01 and 0.001, 16 workers of batch 32, steps 60 to 120 with error feedback, seed 0 (2026-11-24).
LeNet-5 has 8.1 to 9.2 at 16 workers, FNN-3 11.4 to 12.4; other models were not measured. Independent draws have 16.
"""


@dataclass(frozen=True)
class Setting:
    """What to simulate, and what is known about the numbers.

    Args:
        label: preset or file.
        scenario: model, device, cluster and distributions.
        workers: how many the preset's name or the probe means.
        accelerator: whether gradients are on one.
        sources: where the numbers come from.
        assumed: which of them nobody measured.
        uncertainty: how far they may be off.
    """

    label: str
    scenario: Scenario
    workers: int
    accelerator: bool
    sources: tuple[str, ...]
    assumed: tuple[str, ...]
    uncertainty: Uncertainty


def resolve(
    preset: str | None,
    probe: Path | None,
    model: str | None,
    gbit: float | None = None,
    per_node: int | None = None,
) -> Setting:
    """Make the setting of a command line.

    Args:
        preset: name of a cluster.
        probe: file of a measured one.
        model: of the preset's; a probe has its own.
        gbit: gigabits a second of the links between a preset's machines, in place of its own.
        per_node: workers that share a machine and its link, likewise.

    Raises:
        ValueError: both or none of preset and probe, an unknown name, a probe of another model or version, or a
            ``gbit`` or ``per_node`` that does not fit.
        FileNotFoundError: there is no such probe.
    """
    if (preset is None) == (probe is None):
        given = "none" if preset is None else f"{preset} and {probe}"
        raise ValueError(
            f"preset or probe must be given, one of them, got {given}. Give --preset NAME or --probe FILE."
        )
    if probe is not None:
        for argument, value in (("gbit", gbit), ("per_node", per_node)):
            if value is not None:
                raise ValueError(
                    f"{argument} must come with a preset, got {value:g} for {probe}. A probe has measured."
                )
        from .probe_file import read_probe

        return read_probe(probe, model).setting(str(probe))
    if model is None:
        raise ValueError("model must be given with a preset, got none. Give --model resnet50, for example.")
    return of_preset(str(preset), model, gbit, per_node)


def of_preset(preset: str, model: str, gbit: float | None = None, per_node: int | None = None) -> Setting:
    """Make the setting of a preset and a model shape; see ``resolve``.

    Raises:
        ValueError: an unknown name, or a ``gbit`` or ``per_node`` that does not fit.
    """
    found, shape = find_preset(preset), find_shape(model)
    cluster = _changed(found, gbit, per_node)
    given = [f"{value:g} {unit}" for value, unit in ((gbit, "Gb/s"), (per_node, "a machine")) if value is not None]
    nodes = (found.nodes,) * bool(found.nodes and not given)
    step_s = shape.step_s(found.images_rate, found.flops_rate)
    optimizer_s = found.device.select_s("topk", shape.numel) * 20 / 12  # SGD with momentum moves 20 bytes an entry
    workload = shape.workload(step_s, found.input_images_s, optimizer_s)
    return Setting(
        " with ".join([preset, *([" and ".join(given)] if given else [])]),
        Scenario(workload, found.device, cluster, OVERLAP, found.spread),
        found.workers,
        found.accelerator,
        (*found.sources, f"{model}: {shape.source}"),
        ("backward over layers in proportion to multiply-adds, twice forward", *nodes, *found.assumed),
        found.uncertainty,
    )


def _changed(preset: Preset, gbit: float | None, per_node: int | None) -> Cluster:
    """Return a preset's cluster with other links between machines, or other machines."""
    *inner, outer = preset.cluster.tiers
    if gbit is not None:
        if not gbit > 0:
            raise ValueError(f"gbit must be above 0, got {gbit:g}. Give gigabits a second, such as 10.")
        link = replace(outer.link, name=f"{gbit:g} Gb/s", bandwidth_bits_s=gbit * 1e9 * TCP_SHARE, oversubscription=1.0)
        outer = replace(outer, link=link)
    if per_node is not None:
        if per_node < 1:
            raise ValueError(f"per_node must be at least 1, got {per_node}. Give the workers of a machine.")
        if per_node > 1 and not inner:
            raise ValueError(
                f"per_node must be 1 for {preset.name}, whose machines have one worker, got {per_node}. Leave it out."
            )
        inner = [Tier(tier.name, tier.link, per_node) for tier in inner] if per_node > 1 else []
    return replace(preset.cluster, tiers=(*inner, outer))
