from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.colors import to_hex

from gaussiank_lab.bench.plots import PlottedCurve, curves, time_over_size, write_ops_plot
from gaussiank_lab.bench.rows import Row


def row(operator: str, numel: int, seconds: float, **fields: object) -> Row:
    common = {"kind": "operator", "family": "ours", "backend": "avx2", "state": "steady", "law": "normal"}
    return {**common, "density": 0.001, "operator": operator, "numel": numel, "seconds": seconds, **fields}


def test_curves_take_the_backend_that_is_fastest_at_the_largest_size() -> None:
    rows = [
        row("topk", 100, 0.5), row("topk", 1000, 0.1), row("topk", 100, 0.1, backend="reference"),
        row("topk", 1000, 0.7, backend="reference"), row("topk", 100, 0.9, state="cold"),
        row("torch.topk", 1000, 3.0, family="peer", backend="torch"),
        row("torch.topk", 100, 2.0, family="peer", backend="torch"),
        row("torch.topk", 100, 2.0, family="peer", backend="torch", law="uniform"),
        row("torch.topk", 100, 2.0, family="peer", backend="torch", density=0.1),
        row("numpy.argpartition", 100, 2.0, family="peer", kind="skipped"),
        row("copy", 100, 2.0, family="ceiling", kind="ceiling"),
    ]  # fmt: skip
    assert curves(rows, "normal", 0.001) == [
        PlottedCurve("topk (avx2)", "ours", (100, 1000), (500.0, 100.0)),
        PlottedCurve("torch.topk", "peer", (100, 1000), (2000.0, 3000.0)),
    ]


def test_figure_shows_every_curve_with_units(rows: list[Row]) -> None:
    figure = time_over_size(rows, "normal", 0.01)
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("entries", "time of one selection (ms)")
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    expected = curves(rows, "normal", 0.01)
    drawn = [(tuple(line.get_xdata()), tuple(line.get_ydata())) for line in axes.lines]  # type: ignore[arg-type]
    assert drawn == [(curve.x, curve.ms) for curve in expected]
    texts = {text.get_text() for text in axes.get_legend().get_texts()}
    assert texts == {curve.name for curve in expected}
    assert {"add in place", "torch.topk", "published Gaussian_k"} < texts
    ticks = axes.yaxis.get_major_formatter().format_ticks([0.01, 1.0, 100.0, 1000.0])
    assert ticks == ["0.01", "1", "100", "1,000"]
    assert axes.xaxis.get_major_formatter().format_ticks([1e5, 1e7]) == ["1e5", "1e7"]
    title = axes.get_title(loc="left")
    assert "normal, density 0.01" in title
    assert rows[0]["machine"] in title


def test_no_two_curves_look_alike() -> None:
    names = [f"operator {place}" for place in range(8)]
    rows = [
        row(name, 100 * size, 0.1, threads=1, machine="cpu", date="2026-11-24") for name in names for size in (1, 2)
    ]
    rows += [{**one, "family": "peer", "operator": f"peer {one['operator']}"} for one in rows]
    lines = time_over_size(rows, "normal", 0.001).axes[0].lines
    looks = {(to_hex(line.get_color()), str(line.get_linestyle()), str(line.get_marker())) for line in lines}
    assert len(looks) == len(lines) == 16


def test_files_are_written_when_there_is_something_to_draw(tmp_path: Path, rows: list[Row]) -> None:
    assert write_ops_plot([row for row in rows if row["kind"] == "ceiling"], tmp_path) == []
    paths = write_ops_plot(rows, tmp_path)
    assert [path.name for path in paths] == ["operator_time.svg", "operator_time.png"]
    assert paths[0].read_text(encoding="utf-8").count("<svg") == 1
    assert paths[1].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("density", [0.01, 0.1])
def test_smallest_density_and_first_law_are_drawn(
    tmp_path: Path, rows: list[Row], density: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, float]] = []

    def watched(rows: list[Row], law: str, density: float):  # type: ignore[no-untyped-def]
        seen.append((law, density))
        return time_over_size(rows, law, density)

    monkeypatch.setattr("gaussiank_lab.bench.plots.time_over_size", watched)
    write_ops_plot([row for row in rows if row["density"] >= density], tmp_path)
    assert seen == [("normal", density)]
