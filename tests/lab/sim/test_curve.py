from __future__ import annotations

import pytest
from tests.each import each

from gaussiank import codec
from gaussiank_lab.sim import HEADER_BYTES, Curve


def test_the_header_of_a_payload_is_the_codecs() -> None:
    assert HEADER_BYTES == codec.HEADER_BYTES


def test_passes_through_its_points_and_is_a_power_law_between_them() -> None:
    curve = Curve.of([(10, 1.0), (1000, 100.0), (10_000, 10_000.0)])
    assert [curve(size) for size in (10, 1000, 10_000)] == pytest.approx([1, 100, 10_000])
    assert curve(100) == pytest.approx(10)  # slope 1 below 1000
    assert curve(1000 * 10**0.5) == pytest.approx(1000)  # slope 2 above


def test_holds_below_and_goes_on_above() -> None:
    curve = Curve.of([(10, 1.0), (100, 10.0)])
    assert curve(1) == 1.0
    assert curve(1000) == pytest.approx(100)


def test_nothing_costs_nothing() -> None:
    assert Curve()(1e9) == 0
    assert Curve.of([(10, 1.0)])(0) == 0
    assert Curve.of([(10, 1.0)])(20) == 2.0  # one point: in proportion


def test_linear_is_overhead_and_slope() -> None:
    curve = Curve.linear(1e-5, 1e-9)
    for size in (1.0, 1e4, 1e8, 1e10):
        assert curve(size) == pytest.approx(1e-5 + 1e-9 * size)
    assert curve.times(3)(1e6) == pytest.approx(3 * curve(1e6))


@each(
    ("points", "message"),
    [
        ([(1, 0.0)], "points must be above 0"),
        ([(1, float("nan"))], "points must be above 0"),
        ([(2, 1.0), (1, 1.0)], "sizes must ascend"),
        ([(2, 1.0), (2, 1.0)], "sizes must ascend"),
    ],
)
def test_refuses_what_was_not_measured(points: list[tuple[float, float]], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Curve.of(points)


def test_refuses_another_number_of_values() -> None:
    with pytest.raises(ValueError, match=r"^values must be as many as the 2 sizes, got 1\."):
        Curve((1.0, 2.0), (1.0,))
