"""The adapter of Lightning, in its real Trainer on two workers, on CPUs, where Lightning's own switch does nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.integrations.conftest import added_lines


def test_lightning(two_processes: Callable[[str, str], list[dict[str, Any]]]) -> None:
    assert len(added_lines("Lightning")) == 2
    for rank, found in enumerate(two_processes("lightning", "Lightning")):
        for how in ("recipe", "buckets"):
            assert found[how]["differing"] == []
            assert found[how]["calls"] == [6, 6]
            assert 0 < found[how]["kept"] < found[how]["numel"]
        assert found["text"].startswith("CompressionCallback(Compression(density=Constant(density=0.0625)")
        assert found["beside"] == ["step=3.ckpt", "step=6.ckpt"]
        assert found["kept"] == [["gaussiank", "step=6.ckpt"], ["step=6.ckpt"]]
        assert found["weights only"] == ["only.ckpt"]
        assert {"gaussiank/sent_bytes", "gaussiank/exposed_s"} < set(found["logged"])
        assert found["twice"].startswith("ValueError: callbacks must hold one CompressionCallback, got more.")
        assert found["one process"].startswith("ValueError: trainer must have several processes, got one: ")
        assert "step=3.ckpt must be of step 3 as " in found["another step"]
        without = "step=3.ckpt holds no residuals: compression begins with none" if rank == 0 else "nothing"
        assert without in found["without residuals"]
