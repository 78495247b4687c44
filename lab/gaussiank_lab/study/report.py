"""The page of a study: its figures and tables in one file of HTML."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from gaussiank_lab.outputs import write_whole
from gaussiank_lab.report.plots import figure_svg
from gaussiank_lab.study.plots import FIGURES
from gaussiank_lab.study.study import Study, read_study
from gaussiank_lab.study.summary import headline, law_name, layer_rows, layer_vectors, shapes, tallies, whole_vectors

PAGE_NAME = "gradients.html"
PLOTS = "plots"
_DPI = 160
_BOUND_TEXTS = {"linear": "1 − k/d", "squared": "(1 − k/d)²", "cubed": "(1 − k/d)³"}


def write_analysis(run_dir: str | Path) -> tuple[Path, list[Path]]:
    """Write ``RUN/gradients.html`` and each of its figures as ``RUN/plots/NAME.svg`` and ``.png``.

    The page holds its styles and figures and refers to nothing outside itself. Every file is written under a temporary
    name and renamed.

    Args:
        run_dir: directory that a recorder has written, of a finished or a killed run.

    Returns:
        The page, and the figures' files.

    Raises:
        FileNotFoundError: no study is there.
        ValueError: the study is damaged.
    """
    study = read_study(run_dir)
    figures = draw(study)
    drawings = [(figure_svg(figure), heading, caption) for _, figure, heading, caption in figures]
    page = write_whole(Path(run_dir) / PAGE_NAME, page_html(study, drawings).encode("utf-8", "xmlcharrefreplace"))
    plots = []
    for (name, figure, _, _), (drawing, _, _) in zip(figures, drawings, strict=True):
        place = Path(run_dir) / PLOTS
        plots.append(write_whole(place / f"{name}.svg", standalone(drawing).encode()))
        plots.append(write_whole(place / f"{name}.png", png(figure)))
    return page, plots


def draw(study: Study) -> list[tuple[str, Figure, str, str]]:
    """Draw every figure that the study has data for: name, figure, heading, caption."""
    selected = study.samples[-1].selected
    drawn = [
        (name, how(study), heading, caption)
        for name, how, heading, caption in FIGURES
        if name != "distribution-g" or selected != "grad"
    ]
    return [row for row in drawn if row[1].axes[0].has_data()]


def standalone(drawing: str) -> str:
    """Return an ``<svg>`` element as a file of its own."""
    return drawing.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)


def png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=_DPI, facecolor="white")
    return out.getvalue()


def page_html(study: Study, drawings: Sequence[tuple[str, str, str]]) -> str:
    """Return the page as text, everything from the records escaped.

    Args:
        study: what was recorded.
        drawings: SVG element, heading and caption of each figure.
    """
    rooms = files("gaussiank_lab.report")
    styles = re.search(r"<style>(.*?)</style>", rooms.joinpath("report.html.j2").read_text(encoding="utf-8"), re.DOTALL)
    assert styles is not None
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = files("gaussiank_lab.study").joinpath("gradients.html.j2").read_text(encoding="utf-8")
    last = study.samples[-1]
    return environment.from_string(template).render(
        styles=Markup(styles[1]),
        headline=headline(study),
        setting=_setting(study),
        remarks=_remarks(study),
        tallies=[
            (kind, _BOUND_TEXTS[row.bound], row)
            for kind, vectors in (("whole model", whole_vectors), ("layers", layer_vectors))
            for row in tallies(shapes(vectors(study)))
            if row.vectors
        ],
        figures=[(Markup(drawing), heading, caption) for drawing, heading, caption in drawings],
        layers=[_layer_cells(row) for row in layer_rows(study)],
        last_step=last.step,
        origin=_origin(study),
        command=str(study.run.get("command", "")),
    )


def _setting(study: Study) -> str:
    config = study.run.get("compression", {})
    parts = [f"{study.numel:,} parameters", f"{len(study.samples)} samples, one every {study.run.get('every')} steps"]
    parts += [f"{key} {config[key]}" for key in ("compressor", "scope") if key in config]
    if config:
        parts.append(f"density {study.samples[-1].density:g}")
    return ", ".join([*parts, f"worker {study.run.get('rank', 0)} of {study.run.get('world_size', 1)}"])


def _remarks(study: Study) -> list[str]:
    remarks = []
    if study.truncated:
        remarks.append("The last record was cut short, as when a run is killed; it is left out here.")
    if study.samples[-1].selected == "grad":
        remarks.append("Gradients alone were recorded: this run has no error feedback that could be watched.")
    broken = [sample.step for sample in study.samples if sample.vectors["grad"].nonfinite]
    if broken:
        remarks.append(f"Gradients were not finite at {len(broken)} samples, first at step {broken[0]}.")
    return remarks


def _layer_cells(row: Any) -> tuple[str, ...]:
    def text(value: float, form: str) -> str:
        return format(value, form) if value == value else "–"

    return (
        row.name,
        f"{row.numel:,}",
        text(100 * row.zeros, ".1f"),
        text(row.kurtosis, ".3g"),
        law_name(row.law),
        text(row.distance, ".3f"),
        "yes" if row.bell else "no",
        text(row.kept_over_k, ".2f"),
        text(row.contraction, ".4f"),
    )


def _origin(study: Study) -> list[tuple[str, str]]:
    keys = ("started", "gaussiank", "torch", "world_size", "every")
    return [(key.replace("_", " "), str(study.run[key])) for key in keys if key in study.run] + [
        (str(key), str(value)) for key, value in study.run.get("compression", {}).items()
    ]
