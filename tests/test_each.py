"""What a loop inside a case must keep: every sub-case runs, as it would alone, and one that fails is named."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.each import each

SEEN: list[tuple[int, str, float, bool, str | None]] = []


@each("number", [1, 2, 3])
@each(("letter", "name"), [("a", "VARIABLE_OF_A"), ("b", "VARIABLE_OF_B")])
def test_every_pair_runs_as_if_alone(
    number: int, letter: str, name: str, rng: torch.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    SEEN.append((number, letter, float(torch.rand(1, generator=rng)), any(tmp_path.iterdir()), os.environ.get(name)))
    monkeypatch.setenv(name, "set")
    (tmp_path / "file").touch()


def test_what_ran() -> None:
    if SEEN:  # the test above may have been left out
        assert sorted(pair[:2] for pair in SEEN) == [(number, letter) for number in (1, 2, 3) for letter in "ab"]
        assert len({draw for _, _, draw, _, _ in SEEN}) == 1
        assert not any(full or leaked for _, _, _, full, leaked in SEEN)


def request() -> SimpleNamespace:
    sections: list[str] = []
    node = SimpleNamespace(sections=sections, add_report_section=lambda when, key, text: sections.append(text))
    return SimpleNamespace(fixturenames=[], node=node)


def test_the_first_that_fails_ends_the_case_and_is_named() -> None:
    ran = []

    @each("divisor", [2, 1, 0, 4], ids=lambda value: f"by {value}")
    def divides(divisor: int) -> None:
        ran.append(divisor)
        assert 8 / divisor

    asked = request()
    with pytest.raises(ZeroDivisionError):
        divides(request=asked)
    assert (ran, asked.node.sections) == ([2, 1, 0], ["divisor=by 0\n(number 3 of 4, the last that ran)"])


def test_a_case_is_skipped_when_all_its_sub_cases_are() -> None:
    ran = []

    def odd(number: int) -> None:
        if number % 2 == 0:
            pytest.skip("even")
        ran.append(number)

    each("number", range(5))(odd)(request=request())
    assert ran == [1, 3]
    for numbers in ([0, 2], []):
        with pytest.raises(pytest.skip.Exception):
            each("number", numbers)(odd)(request=request())
