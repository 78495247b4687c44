"""``gaussiank gpu-check``: each part goes through its steps on a CPU; what it says of a GPU, no test here can know."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gaussiank import ops
from gaussiank_lab.cli import main
from gaussiank_lab.gpu_check import bits, kernels
from gaussiank_lab.gpu_check import run as runner
from gaussiank_lab.gpu_check.answer import Answer, Check
from gaussiank_lab.gpu_check.parts import PARTS

CPU = torch.device("cpu")


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gaussiank", "gpu-check"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"^2$"):
        main()
    said = capfd.readouterr().err
    assert said.startswith("gaussiank: gpu-check must run where torch sees a CUDA device, got torch ")
    assert len(said.splitlines()) == 1


def test_the_parts_take_less_than_nine_minutes() -> None:
    assert sum(part.limit_s for part in PARTS) <= 540
    assert max(part.limit_s for part in PARTS) < 120


def test_every_part_goes_through_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = bits._vectors
    monkeypatch.setattr(bits, "_vectors", lambda device: itertools.islice(vectors(device), 2, 14))
    found = {part.name: part.answer(CPU) for part in PARTS if part.name != "two_ranks"}
    passed = {name: answer.passed for name, answer in found.items()}
    # a CPU has nothing that is let go too early, and nothing of its speed is judged
    assert passed == dict.fromkeys(passed, True) | {"fault": False, "speed": None}
    assert all(answer.rows for name, answer in found.items() if name != "fault")
    assert found["fault"].said.endswith("NOT seen, so that part proves little")


def test_other_bits_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, plain = bits._vectors, bits._results

    def spoilt(grad: torch.Tensor, residual: torch.Tensor, k: int) -> Any:
        found = plain(grad, residual, k)
        found["union"][1] = found["union"][1] + torch.rand(())
        return found

    monkeypatch.setattr(bits, "_vectors", lambda device: itertools.islice(vectors(device), 1))
    monkeypatch.setattr(bits, "_results", spoilt)
    answer = bits.bits(CPU)
    assert answer.passed is False
    assert answer.said.endswith("ops and wires give the bits of the CPU; not union, 1 normal")


def test_it_writes_a_file_and_a_page(tmp_path: Path) -> None:
    told: list[str] = []
    assert runner.run(tmp_path, ("two_ranks",), device="cpu", tell=told.append) == 0
    found = json.loads((tmp_path / "gpu-check-cpu.json").read_text())
    assert [(part["name"], part["passed"]) for part in found["parts"]] == [("two_ranks", True)]
    assert found["kernels"] in ("native", "torch")
    page = (tmp_path / "gpu-check-cpu.md").read_text()
    assert "| two_ranks | Do all collectives agree between two ranks on NCCL? | right | 6 of 6 collectives" in page
    assert "| tree | True |" in page
    assert told[0].startswith("two_ranks: right – 6 of 6 collectives give the bits of the CPU between two ranks")
    with pytest.raises(ValueError, match=r"parts must be among order, .*, got 'orders'\. Correct it\."):
        runner.run(tmp_path, ("orders",))


def test_what_ends_or_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = Check("nowhere", "?", 60, lambda device: Answer(None, ""))
    ended, _ = runner.answered(nowhere, "cpu", 60)
    assert (ended.passed, ended.said) == (False, "ended with status 1: StopIteration")
    late, _ = runner.answered(nowhere, "cpu", 0.0)
    assert (late.passed, late.said) == (None, "not begun: the nine minutes were over")
    graph = next(part for part in PARTS if part.name == "graph")
    monkeypatch.setattr(runner.subprocess, "run", _hangs)
    hung, _ = runner.answered(graph, "cpu", 6.0)
    assert (hung.passed, hung.said) == (None, "no answer within 6 s: it hangs, or this machine is slow")


def _hangs(command: list[str], timeout: float, **_: Any) -> None:
    raise runner.subprocess.TimeoutExpired(command, timeout)


def test_what_runs_the_ops_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.kernels_of(CPU) == ("native" if len(ops.backends().available) > 1 else "torch")
    assert kernels.kernels_of(torch.device("meta")) == "torch"
    monkeypatch.setattr(kernels.accelerator, "kernels", {torch.device("cuda", 0): bits}.get)
    assert kernels.kernels_of(torch.device("cuda", 0)) == "triton"
