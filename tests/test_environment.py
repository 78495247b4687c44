from __future__ import annotations

import re

import pytest

from gaussiank.collectives.hierarchical import _ranks
from gaussiank.environment import number_from
from gaussiank.lab.launch import require_job, restarts, world_size

JOB = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "x",
    "MASTER_PORT": "9",
}


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


def test_what_a_launcher_says_is_checked_before_torch_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in JOB.items():
        monkeypatch.setenv(name, text)
    require_job()
    for name, text in (
        ("RANK", "abc"),
        ("RANK", "4"),
        ("WORLD_SIZE", "0"),
        ("LOCAL_WORLD_SIZE", "0"),
        ("LOCAL_WORLD_SIZE", "5"),
        ("LOCAL_RANK", "2"),
        ("MASTER_PORT", "65536"),
    ):
        with monkeypatch.context() as changed:
            changed.setenv(name, text)
            with pytest.raises(ValueError, match=f"^environment variable {name} must be a whole number .* '{text}'"):
                world_size(None)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "x")
    with pytest.raises(ValueError, match=r"^environment variable TORCHELASTIC_RESTART_COUNT "):
        restarts()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "two")
    with pytest.raises(ValueError, match=r"^environment variable LOCAL_WORLD_SIZE "):
        _ranks((0, 1), rank=0, ranks_per_node=0)
