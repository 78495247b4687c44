"""The adapter of Accelerate, in the real Accelerator on two workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.integrations.conftest import added_lines


def test_accelerate(two_processes: Callable[[str, str], list[dict[str, Any]]]) -> None:
    assert len(added_lines("Accelerate")) == 2
    for rank, found in enumerate(two_processes("accelerate", "Accelerate")):
        for how in ("recipe", "buckets"):
            assert found[how]["differing"] == []
            assert found[how]["calls"] == [6, 6]
            assert 0 < found[how]["kept"] < found[how]["numel"]
        assert found["unprepared"].startswith(
            "ValueError: model must be what accelerator.prepare returned, got Linear that is not wrapped. Call "
        )
        assert found["one process"].startswith("ValueError: accelerator must have several processes, got one: ")
        assert found["twice"].startswith("RuntimeError: model must have no communication hook yet, got one that has a")
        assert {"gaussiank", "gaussiank_1"} < set(found["folders"])
        without = "two holds no residuals: compression begins with none" if rank == 0 else "nothing"
        assert without in found["without residuals"]
        assert found["local steps agree"]
        assert found["sharded"] == [1, True]
