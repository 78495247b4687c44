"""From ``--preset`` or ``--probe``, and ``--model``, to what is simulated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gaussiank.sim import Curve, Overlap, Scenario

from .presets import Uncertainty, find_preset
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


def resolve(preset: str | None, probe: Path | None, model: str | None) -> Setting:
    """Make the setting of a command line.

    Raises:
        ValueError: both or none of preset and probe, an unknown name, or a probe of another model or version.
        FileNotFoundError: there is no such probe.
    """
    if (preset is None) == (probe is None):
        given = "none" if preset is None else f"{preset} and {probe}"
        raise ValueError(
            f"preset or probe must be given, one of them, got {given}. Give --preset NAME or --probe FILE."
        )
    if probe is not None:
        from .probe_file import read_probe

        return read_probe(probe, model).setting(str(probe))
    if model is None:
        raise ValueError("model must be given with a preset, got none. Give --model resnet50, for example.")
    return of_preset(str(preset), model)


def of_preset(preset: str, model: str) -> Setting:
    """Make the setting of a preset and a model shape.

    Raises:
        ValueError: an unknown name.
    """
    found, shape = find_preset(preset), find_shape(model)
    step_s = shape.step_s(found.images_rate, found.flops_rate)
    optimizer_s = found.device.select_s("topk", shape.numel) * 20 / 12  # SGD with momentum moves 20 bytes an entry
    workload = shape.workload(step_s, found.input_images_s, optimizer_s)
    return Setting(
        preset,
        Scenario(workload, found.device, found.cluster, OVERLAP, found.spread),
        found.workers,
        found.accelerator,
        (*found.sources, f"{model}: {shape.source}"),
        ("backward over layers in proportion to multiply-adds, twice forward", *found.assumed),
        found.uncertainty,
    )
