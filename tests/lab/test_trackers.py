"""TensorBoard and W&B by stand-ins of the same shape: neither has to be installed."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from gaussiank_lab.train import progress
from gaussiank_lab.train.progress import open_trackers, require_trackers

STEP = {"kind": "step", "method": "randomk:feedback=false", "step": 7, "loss": 0.5, "kept": 62.0, "step_s": 0.018}
EVAL = {"kind": "eval", "method": "topk", "step": 8, "accuracy": 0.75, "ema_accuracy": 0.8, "epoch": 1.0}


def test_what_is_not_installed_is_said_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    remedy = r"Install it: pip install 'gaussiank-lab\[wandb\]'\.$"
    sentence = r"^track must be installed, got wandb, which is not\. " + remedy
    with pytest.raises(ValueError, match=sentence):
        require_trackers(["wandb:project"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: importlib.machinery.ModuleSpec(name, None))
    require_trackers(["wandb:project", "tensorboard"])
    with pytest.raises(ValueError, match=r"^track must be tensorboard, wandb or wandb:PROJECT, got 'tensorboard:x'"):
        require_trackers(["tensorboard:x"])


def test_tensorboard_gets_a_folder_for_each_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[Any, ...]] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            self.folder = Path(folder).relative_to(tmp_path)
            written.append((str(self.folder), purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((self.folder.name, name, value, step))

        def close(self) -> None:
            written.append((self.folder.name, "closed"))

    module = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    (tracker,) = open_trackers(["tensorboard"], tmp_path, {})
    for record in ({"kind": "run"}, STEP, EVAL, {"kind": "method", "method": "topk", "loss": 1.0}):
        tracker.write(record)
    tracker.close()
    assert written[0] == ("tensorboard/randomk-feedback=false", 7)
    assert ("randomk-feedback=false", "train/loss", 0.5, 7) in written
    assert ("randomk-feedback=false", "train/step_ms", 18.0, 7) in written
    assert ("topk", "test/ema_accuracy", 0.8, 8) in written
    assert written[-2:] == [("randomk-feedback=false", "closed"), ("topk", "closed")]


def test_rounds_are_numbers_too() -> None:
    record = {"kind": "round", "method": "local", "step": 10, "fragment": 0, "began": 10, "sent_bytes": 800, "kept": 9}
    seconds = {"difference_norm": 0.5, "residual_norm": 2.0, "round_s": 0.2, "waited_s": 0.05}
    found = dict(progress._numbers({**record, **seconds}))
    assert found == pytest.approx(
        {
            "round/sent_bytes": 800, "round/kept": 9, "round/difference_norm": 0.5, "round/residual_norm": 2.0,
            "round/round_ms": 200, "round/waited_ms": 50, "round/overlap": 0.75,
        }
    )  # fmt: skip


def test_wandb_goes_on_with_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, Any]] = []
    logged: list[dict[str, float]] = []

    def init(**given: Any) -> Any:
        started.append(given)
        return types.SimpleNamespace(id=given["id"] or "abc", log=logged.append, finish=lambda: logged.append({}))

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for _ in range(2):
        (tracker,) = open_trackers(["wandb:mine"], tmp_path, {"lr": 0.1})
        tracker.write({"kind": "run"})
        tracker.write(EVAL)
        tracker.close()
    assert [(given["project"], given["id"], given["config"]) for given in started] == [
        ("mine", None, {"lr": 0.1}),
        ("mine", "abc", {"lr": 0.1}),
    ]
    assert logged[0] == {
        "topk/test/accuracy": 0.75,
        "topk/test/ema_accuracy": 0.8,
        "topk/test/epoch": 1.0,
        "topk/step": 8,
    }
    assert logged[1] == {}
