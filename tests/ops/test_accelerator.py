"""Which backend runs for a device, and what is said where the kernels in Triton do not."""

from __future__ import annotations

import sys
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.each import each

from gaussiank import ops
from gaussiank.ops import accelerator, dispatch, native, reference

CUDA = torch.device("cuda:0")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_found", "_why_not", "_errors"):
        monkeypatch.setattr(accelerator, name, {})
    monkeypatch.delenv(accelerator.INTERPRET, raising=False)


def test_a_cpu_is_told_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.prepare([torch.device("cpu"), torch.device("meta")])
    assert accelerator.kernels(torch.device("cpu")) is None
    assert "triton" not in ops.backends().available


def test_a_library_without_kernels_in_c_still_has_those_in_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    kernels = SimpleNamespace(take=lambda *_: asked.append("take"))
    monkeypatch.setattr(accelerator, "kernels", lambda device: kernels)
    monkeypatch.setattr(native, "numbers", dict)
    monkeypatch.setattr(dispatch, "_chosen", None)
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    vector = torch.empty(5, device="meta")
    assert dispatch.active() == "reference"
    ops.topk(vector, 2)
    assert asked == ["take"]
    with ops.use_backend("reference"):  # asked for: it is what runs
        assert dispatch._triton(vector) is None
    monkeypatch.setattr(dispatch, "_chosen", None)
    monkeypatch.setenv(dispatch.VARIABLE, "reference")
    assert dispatch._triton(vector) is None


@each("kind", ["mps", "xpu"])
def test_other_accelerators_are_told_once(kind: str) -> None:
    devices = [torch.device(kind, 0), torch.device(kind, 1)]
    with pytest.warns(UserWarning, match=f"do not run on {kind}: they are written for CUDA alone") as told:
        ops.prepare(devices)
    assert len(told) == 1
    ops.prepare(devices)  # a warning would be an error


def test_triton_that_is_not_there_or_does_not_compile_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delattr(ops, "triton", raising=False)  # another test may have imported it
    monkeypatch.setitem(sys.modules, "gaussiank.ops.triton", None)
    with pytest.warns(UserWarning, match="do not run on cuda: (ModuleNotFound|Import)Error: ") as told:
        ops.prepare([CUDA])
    assert len(told) == 1
    ops.prepare([CUDA])

    def raises(*_: Any, **__: Any) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    monkeypatch.setattr(accelerator, "_found", {})
    monkeypatch.setattr(accelerator, "_why_not", {})
    monkeypatch.setattr(accelerator, "compare", raises)
    monkeypatch.setitem(sys.modules, "gaussiank.ops.triton", SimpleNamespace())
    with pytest.warns(UserWarning, match="on cuda: RuntimeError: Failed to find C compiler"):
        ops.prepare([CUDA])
    assert accelerator.kernels(CUDA) is None


def take(residual: Any, k: int, hint: Any, grad: Any = None, out: Any = None, layout: Any = None) -> Any:
    if grad is None:
        return reference.topk(residual, k)
    return reference.accumulate_topk(grad, residual, k, out=out)


@each("wrong", ["take", "topk"])
def test_kernels_that_give_other_bits_are_not_used(wrong: str) -> None:
    def wrong_take(residual: Any, k: int, hint: Any, grad: Any = None, out: Any = None, layout: Any = None) -> Any:
        taken = take(residual, k, hint, grad, out)
        if (grad is None) == (wrong == "topk"):
            taken.values[-1] += 1
        return taken

    with pytest.raises(RuntimeError, match=f"{wrong} gives other bits than the reference"):
        accelerator.compare(SimpleNamespace(take=wrong_take), torch.device("cpu"))
