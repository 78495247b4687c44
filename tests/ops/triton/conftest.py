"""Triton's interpreter, with the programs of a kernel in random order; ``GAUSSIANK_INTERPRET=all`` runs every case.

Triton reads ``TRITON_INTERPRET`` when it is imported and when a kernel is defined, so that both are imported here, anew
where torch has imported Triton before. The variable is gone afterwards: other tests see the backends that users see.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from gaussiank.ops import accelerator, dispatch

ALL = os.environ.get("GAUSSIANK_INTERPRET") == "all"
TRITON = importlib.util.find_spec("triton") is not None

if TRITON:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(accelerator.INTERPRET, "1")
        for name in [one for one in sys.modules if f"{one}.".startswith("triton.")]:
            if not name.startswith("triton._C"):  # compiled, and the same in both
                del sys.modules[name]
        import triton.runtime.interpreter as interpreter

        from gaussiank.ops.triton import count as _count  # its kernels become functions of the interpreter
        from gaussiank.ops.triton import emit as _emit


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not TRITON:
        for item in items:
            if "/ops/triton/" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason="triton is not installed"))


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the ops run the kernels on the CPU, with the programs of each launch in another order."""
    monkeypatch.setenv(accelerator.INTERPRET, "1")
    monkeypatch.setattr(accelerator, "_found", {})
    _shuffle(monkeypatch)
    _patch_quickly(monkeypatch)
    if not ALL:  # fewer turns of the loops, whose time the interpreter's is
        for module in (_count, _emit):
            monkeypatch.setattr(module, "LANES", 256)
    with dispatch.use_backend(dispatch.TRITON), np.errstate(over="ignore", invalid="ignore"):
        yield


def _shuffle(monkeypatch: pytest.MonkeyPatch) -> None:
    chance, builder = random.Random(0), interpreter.interpreter_builder
    plain_index, plain_dimensions, order = builder.set_grid_idx, builder.set_grid_dim, [0]

    def set_dimensions(*dimensions: int) -> None:
        order[:] = chance.sample(range(dimensions[0]), dimensions[0])
        plain_dimensions(*dimensions)

    monkeypatch.setattr(builder, "set_grid_dim", set_dimensions)
    monkeypatch.setattr(builder, "set_grid_idx", lambda x, y, z: plain_index(order[x], y, z))


def _patch_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the interpreter to look for Triton's functions anew in every call of one by another: half of its time."""
    core = interpreter.tl.core

    @functools.cache
    def functions(module: Any) -> list[str]:
        return [name for name, member in inspect.getmembers(module) if core.is_builtin(member)]

    def patch_functions(module: Any, builder: Any, scope: Any) -> None:
        for name in functions(module):
            member = getattr(module, name)
            if core.is_builtin(member):  # and not patched yet
                interpreter._patch_attr(module, name, member, builder, scope)

    monkeypatch.setattr(interpreter, "_patch_builtin", patch_functions)
