"""What is compiled: all of it beforehand, one variant whatever the numbers and the addresses are."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gaussiank.codec import Wire
from gaussiank.ops import NarrowMean, accelerator

Launched = set[tuple[object, ...]]


class Noting:
    """Stands in for a kernel, and notes what it would be compiled for: types, and what is known beforehand."""

    def __init__(self, name: str, launched: Launched) -> None:
        self.name, self.launched = name, launched

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return self.launch

    def launch(self, *given: Any, **known: Any) -> None:
        types = [one.dtype if isinstance(one, torch.Tensor) else type(one) for one in given]
        assert all(not isinstance(one, int) or -(2**31) <= one < 2**31 for one in given)
        self.launched.add((self.name, *types, *sorted(known.items())))


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Launched:
    found: Launched = set()
    for name, module in list(sys.modules.items()):
        for key in list(vars(module)) if name.startswith("gaussiank.ops.triton.") else []:
            if key.endswith("_kernel"):
                monkeypatch.setattr(module, key, Noting(key, found))
    return found


def test_compress_compiles_all_that_a_step_can_launch(launched: Launched, monkeypatch: pytest.MonkeyPatch) -> None:
    import gaussiank.ops.triton as kernels

    monkeypatch.setattr(accelerator, "_require_same", lambda *_: None)  # nothing is computed
    accelerator.compare(kernels, torch.device("cpu"))
    beforehand = launched.copy()
    assert len(beforehand) == 8 + 1 + 1 + 1 + 4 + 6  # sweep, pick, refine, count, emit, decode_mean
    starts = [*itertools.product((0, 1, 4), repeat=3)]
    for dtype, numel, (one, two, three) in itertools.product(
        (torch.float32, torch.bfloat16, torch.float16), (1, 16, 2048, 65_537), starts
    ):
        vector, k = torch.zeros(numel + 4), max(1, numel // 100)
        grad, residual, out = vector.to(dtype)[one:][:numel], vector[two:][:numel], vector.clone()[three:][:numel]
        for values in ("bf16", "fp32"):
            layout = Wire("chunks", values).row_format(k, numel)
            assert layout is not None
            kernels.take(residual, k, torch.tensor(1.0, dtype=torch.float64), grad, out, layout)
            narrow = None if dtype == torch.float32 else NarrowMean(grad, residual)
            kernels.mean_of_rows(torch.zeros(64, layout.length, dtype=torch.uint8), layout, out, narrow)
        kernels.take(residual, k, None, grad, out)
        kernels.take(residual, numel, None)
    assert launched == beforehand
