import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from gaussiank_lab.metric import Metric
from gaussiank_lab.report import plots
from gaussiank_lab.report.records import Records, read_records

NATS = Metric("loss", "loss", "nats/byte")
WriteRun = Callable[..., Path]
FIGURES = (
    plots.metric_over_steps,
    plots.loss_over_steps,
    plots.metric_over_bytes,
    plots.kept_over_steps,
    plots.time_per_step,
)


def line(figure: Figure, label: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    found = [line for line in figure.axes[0].lines if line.get_label() == label]
    assert len(found) == 1
    return np.asarray(found[0].get_xdata(), float), np.asarray(found[0].get_ydata(), float)


def names(axes: Axes) -> dict[str, Text]:
    legend = axes.get_legend()
    return {text.get_text(): text for text in axes.texts or (legend.get_texts() if legend else ())}


def test_metric_over_steps_holds_the_evaluations_in_percent(write_run: WriteRun) -> None:
    figure = plots.metric_over_steps(read_records(write_run()))
    step, accuracy = line(figure, "topk")
    np.testing.assert_array_equal(step, [10, 20, 30, 40])
    np.testing.assert_allclose(accuracy, [46.6, 59.1, 71.6, 84.1])
    assert figure.axes[0].get_ylabel() == "test accuracy (%)"
    assert figure.axes[0].get_xlabel() == "step"


def test_a_run_of_language_is_drawn_in_its_own_unit(write_run: WriteRun) -> None:
    figure = plots.metric_over_steps(read_records(write_run(("dense", "topk"), run={"metric": NATS.as_record()})))
    np.testing.assert_array_equal(line(figure, "topk")[1], [0.5] * 4)
    assert figure.axes[0].get_ylabel() == "test loss (nats/byte)"


def test_loss_is_drawn_raw_and_smoothed(write_run: WriteRun) -> None:
    records = read_records(write_run(steps=200))
    figure = plots.loss_over_steps(records)
    step, loss = records.columns("dense", "step", "loss")
    np.testing.assert_array_equal(line(figure, "dense raw"), (step, loss))
    smoothed = line(figure, "dense")[1]
    np.testing.assert_allclose(smoothed[100], loss[98:103].mean())  # a fortieth of 200 steps
    np.testing.assert_allclose(smoothed[0], loss[:3].mean())


def test_metric_over_bytes_sums_what_was_sent(write_run: WriteRun) -> None:
    figure = plots.metric_over_bytes(read_records(write_run()))
    np.testing.assert_allclose(line(figure, "topk")[0], 1536 * np.array([10, 20, 30, 40]))
    np.testing.assert_allclose(line(figure, "dense")[0], 370236 * np.array([10, 20, 30, 40]))
    assert figure.axes[0].get_xscale() == "log"


def test_a_step_record_stands_for_the_steps_since_the_one_before(tmp_path: Path) -> None:
    steps = [{"method": "m", "step": 5, "sent_bytes": 10.0}, {"method": "m", "step": 10, "sent_bytes": 20.0}]
    evals = [{"method": "m", "step": step, "accuracy": 0.5} for step in (0, 5, 10)]
    records = Records(tmp_path, {}, steps, evals, [])
    np.testing.assert_array_equal(line(plots.metric_over_bytes(records), "m")[0], [50, 150])


def test_kept_over_steps_is_kept_over_k_without_dense(write_run: WriteRun) -> None:
    figure = plots.kept_over_steps(read_records(write_run()))
    axes = figure.axes[0]
    step, ratio = line(figure, "gaussiank raw")
    np.testing.assert_allclose(ratio, [(62 + (s % 5) * 10) / 62 for s in step])
    np.testing.assert_array_equal(line(figure, "topk")[1], np.ones(40))
    assert set(names(axes)) == {"topk", "gaussiank", "randomk"}
    assert axes.get_yscale() == "log"
    band = axes.patches[0].get_extents().transformed(axes.transData.inverted())
    np.testing.assert_allclose((band.y0, band.y1), (2 / 3, 4 / 3))
    low, high = axes.get_ylim()
    assert low < 2 / 3
    assert high > ratio.max()


def test_a_method_that_keeps_nothing_is_still_drawn(tmp_path: Path) -> None:
    steps = [{"method": "m", "step": s, "kept": 0.0, "k": 5, "numel": 100} for s in (1, 2)]
    figure = plots.kept_over_steps(Records(tmp_path, {}, steps, [], []))
    np.testing.assert_array_equal(line(figure, "m")[1], [0, 0])
    plots.figure_svg(figure)


def test_time_per_step_stacks_the_medians(write_run: WriteRun) -> None:
    figure = plots.time_per_step(read_records(write_run()))
    axes = figure.axes[0]
    bars = {bars.get_label(): [(bar.get_x(), bar.get_width()) for bar in bars] for bars in axes.containers}  # type: ignore[attr-defined]
    assert list(bars) == ["compute", "select", "communicate", "other"]
    np.testing.assert_allclose([bars[part][1] for part in bars], [(0, 14), (14, 0.3), (14.3, 3), (17.3, 1)])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dense", "topk", "gaussiank", "randomk"]
    assert list(names(axes)) == ["18 ms", "18.3 ms", "18.4 ms", "18.2 ms"]
    assert axes.get_xlabel() == "median time per step (ms)"


def test_a_method_has_one_colour_in_every_figure(write_run: WriteRun) -> None:
    records = read_records(write_run())
    color = plots.method_styles(records)["gaussiank"].color
    for draw in FIGURES:
        axes = draw(records).axes[0]
        shown = [line.get_color() for line in axes.lines if "gaussiank" in str(line.get_label())]
        shown += [text.get_color() for text in (*names(axes).values(), *axes.get_yticklabels())
                  if text.get_text() == "gaussiank"]  # fmt: skip
        assert set(shown) == {color}


def test_styles_stay_distinct_beyond_the_palette(tmp_path: Path) -> None:
    records = Records(tmp_path, {}, [{"method": f"m{i}"} for i in range(15)], [], [])
    styles = plots.method_styles(records)
    assert len(set(styles.values())) == 15
    parts = {color for _, _, color in plots.PARTS}
    assert not parts & {style.color for style in styles.values()}


@pytest.mark.parametrize("draw", FIGURES)
def test_names_do_not_cover_each_other(write_run: WriteRun, draw: Callable[[Records], Figure]) -> None:
    methods = ["dense", *(f"topk:a={i}" for i in range(5)), "randomk:feedback=false", "gaussiank:mode=published"]
    figure = draw(read_records(write_run(methods)))
    figure.draw_without_rendering()
    texts: list[Text] = [*names(figure.axes[0]).values()]
    boxes = [Text.get_window_extent(text) for text in texts]
    assert boxes
    for i, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0
        assert box.x1 <= figure.bbox.x1 + 1
        assert figure.bbox.y0 - 1 <= box.y0
        assert box.y1 <= figure.bbox.y1 + 1
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


def test_smooth_leaves_missing_values_out() -> None:
    values = np.array([1.0, math.nan, 3.0, 5.0, 1e30, 2.0, 4.0])
    np.testing.assert_array_equal(plots.smooth(values, 1), values)
    np.testing.assert_allclose(plots.smooth(values, 3), [1, math.nan, 4, 1e30 / 3, 1e30 / 3, 1e30 / 3, 3])
    assert plots.smooth(np.array([]), 5).size == 0


def test_long_curves_are_thinned_and_keep_their_extremes(tmp_path: Path) -> None:
    steps = [{"method": "m", "step": s, "loss": 2.0 + s % 7} for s in range(1, 20_001)]
    steps[12_345]["loss"] = 99.0
    steps[777]["loss"] = 0.5
    figure = plots.loss_over_steps(Records(tmp_path, {}, steps, [], []))
    step, loss = line(figure, "m raw")
    assert step.size <= plots.RAW_POINTS + 2
    assert (step[0], step[-1]) == (1, 20_000)
    assert step[loss == 99.0] == 12_346
    assert step[loss == 0.5] == 778
    assert len(plots.figure_svg(figure)) < 120_000


def test_diverged_method_is_named_so_and_ends_where_its_loss_did(write_run: WriteRun) -> None:
    figure = plots.loss_over_steps(read_records(write_run(("dense", "topk"), diverged="topk")))
    step, loss = line(figure, "topk raw")
    np.testing.assert_array_equal(np.isfinite(loss), step <= 20)
    assert set(names(figure.axes[0])) == {"dense", "topk\ndiverged"}


def test_an_exploded_loss_gets_a_log_axis(tmp_path: Path) -> None:
    steps: list[dict[str, Any]] = [{"method": "m", "step": s, "loss": 1.5**s} for s in range(30)]
    assert plots.loss_over_steps(Records(tmp_path, {}, steps, [], [])).axes[0].get_yscale() == "log"
    assert plots.loss_over_steps(Records(tmp_path, {}, steps[:5], [], [])).axes[0].get_yscale() == "linear"


@pytest.mark.parametrize("draw", FIGURES)
def test_records_without_data_give_a_figure_that_says_so(
    write_run: WriteRun, draw: Callable[[Records], Figure]
) -> None:
    figure = draw(read_records(write_run(())))
    assert not figure.axes[0].has_data()
    assert [text.get_text() for text in figure.axes[0].texts] == ["no data in these records"]
    plots.figure_svg(figure)


@pytest.mark.parametrize("draw", FIGURES)
def test_one_step_of_one_method_is_enough(write_run: WriteRun, draw: Callable[[Records], Figure]) -> None:
    figure = draw(read_records(write_run(("topk",), steps=10)))
    assert figure.axes[0].has_data()
    plots.figure_svg(figure)


@pytest.mark.parametrize("draw", FIGURES)
def test_svg_stands_alone_and_repeats_itself(write_run: WriteRun, draw: Callable[[Records], Figure]) -> None:
    records = read_records(write_run())
    svg = plots.figure_svg(draw(records))
    assert svg == plots.figure_svg(draw(records))
    root = ElementTree.fromstring(svg)
    assert root.tag == "svg"
    assert not re.search(r"http|<text|<style|<metadata|<!--|xmlns", svg)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', svg))
    assert used
    assert {a or b for a, b in used} <= set(ids)


def test_ids_of_two_figures_differ(write_run: WriteRun) -> None:
    records = read_records(write_run())
    first, second = (set(re.findall(r'id="([^"]*)"', plots.figure_svg(draw(records)))) for draw in FIGURES[:2])
    assert not first & second


def test_outlines_of_letters_keep_their_scale(write_run: WriteRun) -> None:
    assert "scale(0.015625)" in plots.figure_svg(plots.metric_over_steps(read_records(write_run())))


@pytest.mark.parametrize("draw", FIGURES)
def test_hostile_names_are_drawn_as_they_are(write_run: WriteRun, draw: Callable[[Records], Figure]) -> None:
    methods = ("$\\frac{", "--><script>alert(1)</script>", "\x00\ud800漢", "_hidden", "")
    svg = plots.figure_svg(draw(read_records(write_run(methods))))
    assert "script" not in svg
    ElementTree.fromstring(svg)


def test_figures_ignore_the_users_settings(write_run: WriteRun) -> None:
    import matplotlib

    records = read_records(write_run())
    plain = plots.figure_svg(plots.metric_over_steps(records))
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "axes.facecolor": "black"}):
        assert plots.figure_svg(plots.metric_over_steps(records)) == plain


def test_readers_import_neither_torch_nor_pyplot() -> None:
    program = (
        "import sys; from gaussiank_lab.report import page, plots, records, summary\n"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_steps_are_whole_numbers(write_run: WriteRun) -> None:
    (axes,) = plots.metric_over_steps(read_records(write_run(("dense",), steps=10))).axes  # one evaluation
    assert all(float(tick).is_integer() for tick in axes.get_xticks())
