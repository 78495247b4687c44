"""The page and the figures of a study: what they say, and that they load nothing."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gaussiank_lab.report.plots import figure_svg
from gaussiank_lab.study import plots as time_plots
from gaussiank_lab.study.plots import FIGURES, energy_against_density, moments_of
from gaussiank_lab.study.report import draw, page_html, write_analysis
from gaussiank_lab.study.study import Study, read_study
from gaussiank_lab.study.summary import headline, layer_rows, shapes, tallies, whole_vectors
from gaussiank_lab.theory import BOUNDS


@pytest.fixture(scope="module")
def study(recorded_dir: Path) -> Study:
    return read_study(recorded_dir)


@pytest.fixture(scope="module")
def analysed(recorded_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Path]]:
    import shutil

    run_dir = shutil.copytree(recorded_dir, tmp_path_factory.mktemp("analysed") / "run")
    page, plots = write_analysis(run_dir)
    return run_dir, page, plots


class Page(HTMLParser):
    """Collects tags, references and table cells, and fails when tags are not balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for key, value in attrs if key in ("href", "src", "xlink:href")]
        if tag not in {"meta", "br", "wbr"}:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for key, value in attrs if key in ("href", "src", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data


def test_files(analysed: tuple[Path, Path, list[Path]]) -> None:
    run_dir, page, plots = analysed
    assert page == run_dir / "gradients.html"
    names = [name for name, *_ in FIGURES]
    assert {path.name for path in plots} == {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    assert {path.name for path in (run_dir / "plots").iterdir()} == {path.name for path in plots}
    for path in plots:
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
        else:
            assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_page_loads_nothing(analysed: tuple[Path, Path, list[Path]]) -> None:
    html = analysed[1].read_text(encoding="utf-8")
    page = Page(html)
    assert page.tags.count("svg") == len(FIGURES)
    assert all(reference.startswith("#") for reference in page.references)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not re.search(r"@import|https?:|url\((?!#)", html)
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))


def test_page_holds_the_counts_and_the_layers(analysed: tuple[Path, Path, list[Path]], study: Study) -> None:
    rows = Page(analysed[1].read_text(encoding="utf-8")).rows
    squared = next(row for row in rows if row[:2] == ["whole model", "(1 − k/d)²"])
    tally = {row.bound: row for row in tallies(shapes(whole_vectors(study)))}["squared"]
    assert squared[2:6] == [str(count) for count in tally[1:]]
    names = [row[0] for row in rows]
    assert names[-4:] == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_what_comes_from_records_is_escaped(study_dir: Path) -> None:
    hostile = "</title></svg><script>alert(1)</script>"
    path = study_dir / "gradients.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[0] |= {"command": hostile, "started": hostile, "compression": {hostile: hostile, "compressor": hostile}}
    for record in records[1:]:
        record["operators"] = {hostile: {"kept": 1, "contraction": 0.5}}
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    study = read_study(study_dir)
    drawing = figure_svg(time_plots.energy_over_steps(study))
    page = Page(page_html(study, [(drawing, "heading", "caption")]))
    assert "svg" in page.tags
    assert "script" not in page.tags


def test_a_study_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "gradients.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="must be a JSON object with a kind"):
        write_analysis(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["gradients.jsonl"]


def test_bounds_are_tallied(study: Study) -> None:
    judged = shapes(whole_vectors(study))
    for row in tallies(judged):
        assert row.vectors == len(study.samples)
        assert row.premise == sum(shape.verdicts[row.bound].premise for shape in judged)
        assert row.broken_with_premise == 0
    assert "bell in" in headline(study)
    assert f"of {len(judged)}" in headline(study)


def test_layer_rows(study: Study) -> None:
    rows = layer_rows(study)
    last = study.samples[-1]
    assert [row.numel for row in rows] == [1800, 60, 300, 5]
    share = sum(row.kept_over_k * row.numel for row in rows) / 2165
    assert share == pytest.approx(last.value("kept") / (last.density * 2165))
    energy = sum((1 - row.contraction) * last.layer(row.name, "accumulated").square_sum for row in rows)
    assert 1 - energy / last.vectors["accumulated"].square_sum == pytest.approx(last.value("contraction"), abs=1e-6)


def test_curves_hold_the_records(study: Study) -> None:
    figure = time_plots.energy_over_steps(study)
    drawn = figure.axes[0].lines[0].get_xydata()
    expected = [[sample.step, 1 - sample.value("contraction")] for sample in study.samples]
    assert np.allclose(drawn, expected)
    kept = time_plots.kept_over_steps(study).axes[0].lines[0].get_xydata()
    rows: list[Any] = [sample.record["since"] for sample in study.samples]
    assert np.allclose(
        np.asarray(kept)[:, 1], [a / b for row in rows for a, b in zip(row["kept"], row["k"], strict=True)]
    )


def test_bounds_lie_under_the_truth(study: Study) -> None:
    lines = energy_against_density(study).axes[0].lines
    truth = np.asarray(lines[0].get_ydata())
    for line, bound in zip(lines[2:5], reversed(BOUNDS.values()), strict=True):
        promised = np.asarray(line.get_ydata())
        assert promised == pytest.approx([bound.delta(float(at)) for at in np.asarray(line.get_xdata())])
        assert (promised <= truth * (1 + 1e-6)).all()


def test_a_run_of_gradients_alone(tmp_path: Path) -> None:
    import torch

    from gaussiank_lab.study.recorder import Recorder

    from .conftest import small_model, train_steps

    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with Recorder(tmp_path, every=1) as recorder:
        recorder.watch(model, optimizer)
        train_steps(model, optimizer, 3)
    study = read_study(tmp_path)
    names = [name for name, *_ in draw(study)]
    assert {"distribution-u", "cumulative", "pi-squared", "bounds-density", "fits", "kurtosis"} <= set(names)
    assert not {"distribution-e", "distribution-g", "kept", "residual-size", "residual-age", "cosine"} & set(names)
    assert headline(study).startswith("The gradient is a bell in")


def test_times_are_spread_over_the_run(study: Study) -> None:
    assert [sample.step for sample in moments_of(study)] == [0, 3, 6, 9, 12]
