"""Torch's default dtype and device are the user's: every compressor, code and collective does the same under any."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from tests.contract.test_compressors import ROWS
from tests.each import each
from torch import Tensor

from gaussiank import ops
from gaussiank.codec import INDEX_CODES, VALUE_CODES, Wire
from gaussiank.compressors import SelectContext
from gaussiank.ops.native import address
from gaussiank.sparse import SparseGradient

DEFAULTS = (torch.bfloat16, torch.float16, torch.float64, "meta")
NUMEL, K = 5000, 70


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def assume(default: torch.dtype | str) -> None:
    torch.set_default_dtype(default if isinstance(default, torch.dtype) else torch.float32)
    torch.set_default_device(default if isinstance(default, str) else None)


def results(grad: Tensor, residual: Tensor) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield what every compressor takes, and what every wire makes of it."""
    for spec, compressor in ROWS.items():
        left, hint = residual.clone(), None
        for step in range(2):
            turn = SelectContext(step=step, hint=hint)
            fused = compressor.take(grad, left, left, K, turn)
            if fused is None:
                left += grad
                indices, hint = compressor.select(left, K, turn)
                values = left[indices.long()]
            else:
                indices, values, hint = fused
            yield f"{spec} at step {step}", [indices, values, left.clone()]
    sparse = SparseGradient(*ops.topk(grad, K)[:2], NUMEL)
    for index in INDEX_CODES:
        if index == "seed":  # sends no indices; with shared draws alone
            continue
        for values in VALUE_CODES:
            if values != "fp64":
                wire = Wire(index, values)
                payload = wire.encode(SparseGradient(sparse.indices, wire.round(sparse.values), NUMEL))
                back = wire.decode(payload, NUMEL)
                yield f"{index}+{values}", [payload, back.indices, back.values]


@each("backend", ["native", "reference"])
def test_defaults_change_nothing(backend: str, draw: Callable[..., Tensor]) -> None:
    grad, residual = draw("laplace", NUMEL), draw("t3", NUMEL, 5)
    with ops.use_backend("reference" if backend == "reference" else ops.backends().available[-1]):
        wanted = dict(results(grad, residual))
        for default in DEFAULTS:
            assume(default)
            for case, found in results(grad, residual):
                for one, other in zip(found, wanted[case], strict=True):
                    assert one.dtype == other.dtype, (default, case)
                    assert one.device == other.device, (default, case)
                    assert torch.equal(one, other), (default, case)


def test_a_kernel_refuses_a_buffer_of_another_size() -> None:
    for tensor in (torch.empty(3), torch.empty(4, dtype=torch.float64), torch.empty(4, device="meta")):
        with pytest.raises(ValueError, match=r"buffer of a kernel must hold 4 entries of torch\.float32 on a CPU, got"):
            address(tensor, torch.float32, 4)
