from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from tests.each import each

from gaussiank.collectives.hierarchical import _ranks
from gaussiank.parsing import number_from, parse_spec


@dataclass(frozen=True)
class Voice:
    loud: bool = False
    pitch: float = 1.0
    parts: tuple[str, ...] = ()  # cannot be written


TABLE = {"voice": Voice}


@each(
    ("spec", "voice"),
    [("voice", Voice()), (" voice:loud=TRUE:pitch=2 ", Voice(True, 2.0)), ("voice:pitch=1e-3", Voice(pitch=0.001))],
)
def test_text_becomes_an_object(spec: str, voice: Voice) -> None:
    assert parse_spec("sound", spec, TABLE) == voice


@each(
    ("spec", "sentence"),
    [
        ("noise", r"^sound must be one of voice, got 'noise'\. Correct it\.$"),
        ("voice:parts=a", r"^settings of voice must be among loud=\.\.\., pitch=\.\.\., got 'parts=a'\."),
        ("voice:loud", r"^settings of voice must be among .*, got 'loud'\. Correct 'voice:loud'\.$"),
        ("voice:pitch=1,loud=true", r"Join settings by colons, not commas\.$"),
        ("voice:loud=1", r"^loud of voice must be a bool, got '1'\. Correct 'voice:loud=1'\.$"),
        ("voice:pitch=1:pitch=2", r"^pitch of voice must be given once, got 'voice:pitch=1:pitch=2'\. Leave one out"),
    ],
)
def test_what_does_not_fit_is_named(spec: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_spec("sound", spec, TABLE)


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
