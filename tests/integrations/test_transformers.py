"""The adapter of Transformers' Trainer, in the real Trainer on two workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.integrations.conftest import added_lines

from gaussiank.metrics import Metrics


def test_trainer(two_processes: Callable[[str, str], list[dict[str, Any]]]) -> None:
    assert len(added_lines("Transformers' Trainer")) == 2
    for rank, found in enumerate(two_processes("transformers", "Transformers' Trainer")):
        for how in ("recipe", "buckets"):
            assert found[how]["differing"] == []
            assert found[how]["calls"] == [6, 6]
            assert 0 < found[how]["kept"] < found[how]["numel"]
        assert found["logged"] == sorted(f"gaussiank/{name}" for name in Metrics().as_dict())
        text, summary = found["text"]
        assert text.startswith("CompressionCallback(Compression(density=Constant(density=0.0625)")
        assert summary.startswith("2 steps: sent ")
        assert found["twice"] == (
            "ValueError: trainer must be compressed once, got one that is. Leave the second compress out."
        )
        assert found["one process"].startswith("ValueError: trainer must have several processes, got one: ")
        if rank:  # one of them tells for all
            assert {found["clips"], found["defaults"], found["without residuals"]} == {"nothing"}
        else:
            assert "checkpoint-3 holds no residuals: compression begins with none" in found["without residuals"]
            assert found["clips"].startswith("warning: max_grad_norm is 1.0, by which Trainer clips the mean")
            assert found["defaults"].startswith("warning: the Trainer's AdamW has momentum (adam_beta1), which delays")
            assert "max_grad_norm=1.0 clips the mean, whose entries had waited. Set optim='sgd', " in found["defaults"]
            assert found["defaults"].count("warning: ") == found["short"].count("warning: ") == 1
        short = "warning: density is so small that an entry waits longer than the run lasts: all 2 steps send 0.02 of"
        assert found["short"].startswith(short if rank == 0 else "nothing")
