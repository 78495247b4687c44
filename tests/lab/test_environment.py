from __future__ import annotations

import pytest

from gaussiank_lab.launch import require_job, restarts, world_size

JOB = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "x",
    "MASTER_PORT": "9",
}


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
