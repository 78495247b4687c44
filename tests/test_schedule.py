from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.each import each

from gaussiank.schedule import (
    DGC_STAGES,
    PUBLISHED_STAGES,
    Constant,
    DenseStart,
    Schedule,
    Warmup,
    entries,
    require_density,
)


def test_constant_never_changes() -> None:
    assert [Constant(0.01)(step) for step in (0, 1, 10**9)] == [0.01] * 3


def test_dense_start_changes_once() -> None:
    schedule = DenseStart(0.001, steps=3)
    assert [schedule(step) for step in range(5)] == [1.0, 1.0, 1.0, 0.001, 0.001]


def test_dgc_ladder_of_its_paper() -> None:
    assert DGC_STAGES == (0.25, 0.0625, 0.015625, 0.004, 0.001)
    schedule = Warmup.dgc(0.001, stage_steps=2)
    assert [schedule(step) for step in range(12)] == [
        *(0.25, 0.25, 0.0625, 0.0625, 0.015625, 0.015625, 0.004, 0.004, 0.001, 0.001, 0.001, 0.001)
    ]


def test_published_ladder() -> None:
    assert PUBLISHED_STAGES == (0.015625, 0.004, 0.001)
    assert Warmup.published(0.001, stage_steps=7).densities == (0.015625, 0.004, 0.001)


def test_published_ladder_can_go_below_its_source() -> None:
    assert Warmup.published(0.0001, stage_steps=7).densities == (0.015625, 0.004, 0.001, 0.0001)


@each(("density", "ladder"), [(0.01, (0.25, 0.0625, 0.015625, 0.01)), (0.25, (0.25,)), (0.5, (0.5,)), (1, (1,))])
def test_ladder_stops_at_the_density_asked_for(density: float, ladder: tuple[float, ...]) -> None:
    assert Warmup.dgc(density, stage_steps=1).densities == ladder


@each("schedule", [Constant(0.1), DenseStart(0.1, steps=1), Warmup((0.2, 0.1), stage_steps=1)])
def test_each_is_a_frozen_schedule(schedule: Schedule) -> None:
    assert isinstance(schedule, Schedule)
    with pytest.raises(AttributeError, match="cannot assign to field"):
        schedule.density = 0.5  # type: ignore[attr-defined]


@each("density", [0, 0.0, -0.1, 1.0001, float("nan"), float("inf"), True, "0.1", None])
def test_refuses_what_is_no_density(density: object) -> None:
    message = re.escape(f"must be in (0, 1], got {density!r}. Give the share of entries to send, such as 0.001.")
    with pytest.raises(ValueError, match=f"^density {message}$"):
        require_density(density)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"^target {message}$"):
        require_density(density, "target")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"^density {message}$"):
        Constant(density)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"^density {message}$"):
        DenseStart(density, steps=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"^densities {message}$"):
        Warmup((0.5, density), stage_steps=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"^density {message}$"):
        Warmup.dgc(density, stage_steps=1)  # type: ignore[arg-type]


@each("density", [1e-9, 0.001, 1.0, 1])
def test_takes_density_as_float(density: float) -> None:
    taken = require_density(density)
    assert taken == density
    assert isinstance(taken, float)


@each("steps", [0, -5])
def test_refuses_stages_without_steps(steps: int) -> None:
    with pytest.raises(ValueError, match=rf"^steps must be at least 1, got {steps}\. Give the length in optimizer"):
        DenseStart(0.1, steps=steps)
    with pytest.raises(ValueError, match=rf"^stage_steps must be at least 1, got {steps}\. Give the length in"):
        Warmup((0.1,), stage_steps=steps)


def test_refuses_ladder_without_stages() -> None:
    with pytest.raises(ValueError, match=r"^densities must name at least one stage, got none\. Give \(0\.25, 0\.001\)"):
        Warmup((), stage_steps=1)


@each(
    ("numel", "k"),
    [(199_210, 199), (61_706, 62), (269_722, 270), (14_728_266, 14_728), (66_034_000, 66_034), (10, 1), (1, 1)],
)
def test_entries_of_the_models_of_the_paper(numel: int, k: int) -> None:
    assert entries(0.001, numel) == k


@given(density=st.floats(1e-6, 1.0), numel=st.integers(1, 2**31 - 1))
def test_entries_are_the_nearest_count_within_the_vector(density: float, numel: int) -> None:
    k = entries(density, numel)
    assert 1 <= k <= numel
    assert abs(k - density * numel) <= 0.5 or k == 1
