from __future__ import annotations

import re

import pytest

from gaussiank.collectives.hierarchical import _ranks
from gaussiank.environment import number_from


def test_a_number_is_read_or_the_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert number_from("RANK", 7) == 7
    for text, least, most, rule in (
        ("abc", 0, None, "at least 0"),
        ("", 0, None, "at least 0"),
        ("1.5", 0, 3, "in [0, 3]"),
        ("-1", 0, None, "at least 0"),
        ("4", 0, 3, "in [0, 3]"),
    ):
        monkeypatch.setenv("RANK", text)
        sentence = f"environment variable RANK must be a whole number {rule}, got {text!r}. torchrun sets it"
        with pytest.raises(ValueError, match="^" + re.escape(sentence)):
            number_from("RANK", 7, least=least, most=most)


def test_a_collective_names_the_launchers_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "two")
    with pytest.raises(ValueError, match=r"^environment variable LOCAL_WORLD_SIZE "):
        _ranks((0, 1), rank=0, ranks_per_node=0)
