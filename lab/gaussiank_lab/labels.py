"""Names beside the ends of curves, in place of a legend: no reader has to match colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SIZE_INCHES = (5.6, 3.4)  # at 700 px wide, 10-point text is 17 px high; at 360 px still 9


class End(NamedTuple):
    """The last point of a curve, where its name is written."""

    text: str
    color: str
    x: float
    y: float


def name_curves(figure: Figure, axes: Axes, ends: Sequence[End], margin: bool = True) -> Figure:
    """Write every name beside the end of its curve, spread so that none covers another."""
    if not axes.has_data():
        axes.text(0.5, 0.5, "no data in these records", transform=axes.transAxes, ha="center", color="#555555")
        axes.set(xticks=[], yticks=[])
    if not ends:
        return figure
    low, high = axes.get_ylim()  # no log axis shows a zero: its name stands at the edge
    ends = [end._replace(y=min(max(end.y, low), high)) for end in ends]
    names = [
        axes.annotate(
            end.text, (end.x, end.y), (1.04, 0.5), textcoords=axes.transAxes, va="center", color=end.color,
            annotation_clip=False, parse_math=False, linespacing=1.05,
            path_effects=[] if margin else [withStroke(linewidth=2.5, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": end.color, "linewidth": 0.6, "relpos": (0, 0.5),
                        "shrinkA": 1, "shrinkB": 2},
        )
        for end in ends
    ]  # fmt: skip
    lines = sum(end.text.count("\n") + 1 for end in ends)
    figure.set_figheight(SIZE_INCHES[1] * max(1, lines / 14))  # 14 lines of text fill the usual height
    layout = figure.get_layout_engine()
    assert layout is not None
    layout.execute(figure)  # now heights and places are known
    places = axes.transAxes.inverted().transform(axes.transData.transform([(end.x, end.y) for end in ends]))
    # An annotation's own extent includes its line, which still ends at a provisional place.
    heights = [1.1 * Text.get_window_extent(name).height / axes.bbox.height for name in names]
    for name, x, y in zip(names, places[:, 0], spread(places[:, 1], np.array(heights)), strict=True):
        name.xyann = (1.04 if margin else x + 0.03, y)
    if not margin:
        layout.execute(figure)  # names moved inward: the axes may widen
    figure.set_layout_engine("none")
    return figure


def spread(wanted: Floats, heights: Floats) -> Floats:
    """Move label centres as little as keeps them apart and between 0 and 1.

    Taking the height below each label off its wish turns "apart" into "ascending"; the nearest ascending sequence is
    found by merging neighbours that are out of order into their mean.
    """
    order = np.argsort(wanted, kind="stable")
    tall = heights[order]
    below = np.cumsum(tall) - tall / 2
    groups: list[list[float]] = []
    for wish in wanted[order] - below:
        groups.append([float(wish)])
        while len(groups) > 1 and np.mean(groups[-2]) > np.mean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    moved = np.array([np.mean(group) for group in groups for _ in group])
    result = np.empty_like(wanted)
    result[order] = np.clip(moved, 0, max(0.0, 1 - tall.sum())) + below
    return result
