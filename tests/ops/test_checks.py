"""What the ops refuse: a ValueError that names the argument, on every backend, with nothing written."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.each import each
from tests.ops.conftest import each_backend
from torch._subclasses.fake_tensor import FakeTensorMode

from gaussiank import ops

Call = Callable[..., Any]
MEMORY = torch.zeros(64)


def topk(**changed: Any) -> None:
    ops.accumulate_topk(**{"grad": torch.ones(8), "residual": torch.zeros(8), "k": 2, **changed})


def threshold(**changed: Any) -> None:
    given = {"grad": torch.ones(8), "residual": torch.zeros(8), "threshold": 0.5, "capacity": 8}
    ops.accumulate_threshold(**{**given, **changed})


BUFFERS = [
    ({"grad": torch.ones(8, dtype=torch.int64)}, "grad must be one of float32, bfloat16, float16, float64, got"),
    ({"grad": torch.ones(2, 4)}, "grad must be flat and contiguous, got shape (2, 4)"),
    ({"grad": torch.ones(16)[::2]}, "grad must be flat and contiguous, got shape (8,) with strides (2,)"),
    ({"grad": torch.ones(8).to_sparse()}, "grad must be a dense tensor, got layout torch.sparse_coo"),
    ({"grad": torch.ones(0), "residual": torch.ones(0)}, "grad must have 1 to 2147483647 entries, got 0"),
    ({"grad": torch.empty(2**31, device="meta")}, "grad must have 1 to 2147483647 entries, got 2147483648"),
    (
        {"residual": torch.zeros(8, dtype=torch.bfloat16)},
        "residual must be torch.float32 for a torch.float32 grad, got",
    ),
    ({"grad": torch.ones(8).double()}, "residual must be torch.float64 for a torch.float64 grad, got torch.float32"),
    ({"residual": torch.zeros(16)[::2]}, "residual must be flat and contiguous"),
    ({"residual": torch.zeros(9)}, "residual must have grad's 8 entries, got 9"),
    ({"residual": torch.zeros(8, device="meta")}, "residual must be on grad's device cpu, got meta"),
    ({"out": torch.zeros(7)}, "out must have grad's 8 entries, got 7"),
    ({"out": torch.zeros(8, dtype=torch.float64)}, "out must be torch.float32 for a torch.float32 grad, got"),
    ({"residual": MEMORY[:8], "out": MEMORY[4:12]}, "out must be residual or apart from it, got one that overlaps it"),
    ({"residual": MEMORY[4:12], "out": MEMORY[:8]}, "out must be residual or apart from it, got one that overlaps it"),
    ({"grad": MEMORY[:8], "out": MEMORY[7:15]}, "out must be apart from grad, got one that overlaps it"),
    ({"grad": MEMORY[:8], "residual": MEMORY[:8]}, "residual must be apart from grad, got one that overlaps it"),
    ({"grad": MEMORY[:8].bfloat16(), "residual": MEMORY[:9]}, "residual must have grad's 8 entries, got 9"),
]


@each_backend
@each("call", [topk, threshold])
@each(("changed", "message"), BUFFERS, ids=[message[:40] for _, message in BUFFERS])
def test_buffers_that_do_not_fit(call: Call, changed: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the message is compared below
        call(**changed)
    assert str(caught.value).startswith(message)
    assert bool((MEMORY == 0).all())


@each_backend
@each("k", [0, -1, 9])
def test_k_out_of_range(k: int) -> None:
    with pytest.raises(ValueError, match=rf"^k must be in \[1, numel = 8\], got {k}\."):
        topk(k=k)
    with pytest.raises(ValueError, match=rf"^k must be in \[1, numel = 8\], got {k}\."):
        ops.topk(torch.ones(8), k)
    with pytest.raises(ValueError, match=rf"^k must be in \[1, numel = 8\], got {k}\."):
        ops.select_topk(torch.ones(8), k)


@each_backend
@each("hint", [torch.ones(1), torch.tensor(1), torch.tensor(1.0, device="meta")], ids=str)
def test_hint_that_no_call_returned(hint: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"^hint must be a 0-d floating tensor on cpu, got "):
        topk(hint=hint)
    with pytest.raises(ValueError, match=r"^hint must be a 0-d floating tensor on cpu, got "):
        ops.topk(torch.ones(8), 2, hint)


@each_backend
@each("capacity", [0, -5, 9])
def test_capacity_out_of_range(capacity: int) -> None:
    with pytest.raises(ValueError, match=rf"^capacity must be in \[1, numel = 8\], got {capacity}\."):
        threshold(capacity=capacity)


@each_backend
def test_threshold_that_is_no_number() -> None:
    with pytest.raises(ValueError, match=r"^threshold must be a number, got nan\."):
        threshold(threshold=math.nan)
    with pytest.raises(ValueError, match=r"^threshold must be a number, got nan\."):
        ops.select_above(torch.ones(8), math.nan)


@each_backend
@each("vector", [torch.ones(2, 4), torch.ones(16)[::2]], ids=["matrix", "strided"])
def test_selection_needs_a_flat_vector(vector: torch.Tensor) -> None:
    for select in (ops.topk, ops.select_topk):
        with pytest.raises(ValueError, match=r"^accumulated must be flat and contiguous, got shape "):
            select(vector, 1)


@each_backend
def test_float64_takes_the_same_path() -> None:
    residual = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    taken = ops.accumulate_topk(torch.ones(3, dtype=torch.float64), residual, 1)
    assert (taken.indices.tolist(), taken.values.tolist(), residual.tolist()) == ([0], [2.0], [0.0, -1.0, 1.5])
    above = ops.accumulate_threshold(torch.ones(3, dtype=torch.float64), residual, 1.5, 3)
    assert (above.indices.tolist(), above.above, residual.tolist()) == ([2], 1, [1.0, 0.0, 0.0])


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
def test_tensors_without_memory_are_taken_as_they_are() -> None:
    with FakeTensorMode():
        grad, residual, out = (torch.empty(8, device="cuda:0") for _ in range(3))
        ops.require_accumulation(grad, residual, out)
