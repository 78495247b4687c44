"""Every program of examples/ that needs the library alone runs, in the workers that are there, for a few steps."""

from __future__ import annotations

import importlib.util
import io
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

EXAMPLES = Path(__file__).parents[2] / "examples"


def ran(rank: int, world_size: int, name: str, *arguments: str) -> str:
    """Run a program's ``main`` in the group that is there, and return what it printed."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setitem(sys.modules, spec.name, module)  # dataclasses look it up
        patch.setattr("sys.argv", [f"{name}.py", *arguments])
        for closed in ("init_process_group", "destroy_process_group"):
            patch.setattr(dist, closed, lambda *_: None)
        spec.loader.exec_module(module)
        module.main()
    return printed.getvalue()


def numbers(said: str, pattern: str) -> list[float]:
    return [float(found) for found in re.findall(pattern, said)]


def test_the_programs_that_need_the_library_alone(two_workers: Any, tmp_path: Path) -> None:
    said, nothing = two_workers.run(ran, "ddp", "--steps", "40")
    assert nothing == ""  # rank 0 speaks
    sent, dense = numbers(said, r"([\d.]+) MB")
    assert 20 * sent < dense
    assert numbers(said, r"accuracy ([\d.]+) %")[0] > 20  # of ten classes

    assert numbers(two_workers.run(ran, "amp", "--steps", "8")[0], r"(\d+) steps were skipped")[0] > 0

    said = two_workers.run(ran, "own_compressor", "--steps", "10")[0]
    assert len(numbers(said, r"([\d.]+) bits each")) == 3
    assert numbers(said, r"(\d+) of \d+ entries") == [374, 368, 352]  # whole runs of 1, 8 and 32

    losses = numbers(two_workers.run(ran, "own_collective", "--steps", "10")[0], r"loss ([\d.]+)")
    assert losses[1] == pytest.approx(losses[0], rel=0.05)

    assert numbers(two_workers.run(ran, "adamw", "--steps", "3")[0], r": ([\d.]+) nats")[0] < 8

    for steps in ("5", "8"):
        said += two_workers.run(ran, "resume", "--folder", str(tmp_path), "--steps", steps)[0]
    saved, loaded, _ = numbers(said, r"(-?[\d.]+) owed")
    assert saved == loaded != 0
