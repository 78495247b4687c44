"""The kernels in Triton against the reference, bit for bit, in its interpreter."""

from __future__ import annotations

import math

import pytest
import torch
from tests.each import each
from tests.ops.conftest import LAWS
from tests.ops.same import require_same
from tests.ops.triton.conftest import ALL

from gaussiank import ops
from gaussiank.ops import accelerator, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = [1, 17, 2047, 2048, 2049, 5000, 70_001] if ALL else [5000]
HINTS: list[float | None] = [None, 0.97, 1.0, 0.3, 1.3]  # of the k-th magnitude, or none


def require_like_reference(
    grad: torch.Tensor, residual: torch.Tensor, k: int, hint: torch.Tensor | None, *, apart: bool = True
) -> None:
    rest = residual.clone()
    expected = reference.accumulate_topk(grad, rest, k)
    before = residual.clone()
    out = torch.full_like(before, math.nan) if apart else before
    got = ops.accumulate_topk(grad, before, k, hint, out=out)
    context = (grad.dtype, grad.numel(), k, hint)
    require_same(got.indices, expected.indices, *context)
    require_same(got.values, expected.values, *context)
    require_same(got.hint, expected.hint, *context)
    require_same(out, rest, *context)
    if apart:
        require_same(before, residual, *context)


def right_hint(grad: torch.Tensor, residual: torch.Tensor, k: int, factor: float | None) -> torch.Tensor | None:
    return None if factor is None else reference.accumulate_topk(grad, residual.clone(), k).hint * factor


@each("number", range(len(LAWS)), ids=LAWS)
def test_takes_what_the_reference_takes(number: int, rng: torch.Generator) -> None:
    law = [*LAWS.values()][number]
    for numel in SIZES:
        residual = law(numel, rng)
        for turn, dtype in enumerate(DTYPES):
            grad = law(numel, rng).to(dtype)
            for place, k in enumerate(sorted({1, max(1, numel // 50), max(1, numel // 3), min(numel, 4000)})):
                for at, factor in enumerate(HINTS):
                    if ALL or (7 * number + 20 * turn + 5 * place + at) % 41 == 0:  # in make test, one or two of sixty
                        require_like_reference(grad, residual, k, right_hint(grad, residual, k, factor))


def test_without_a_hint_infinities_are_no_reason_to_look_at_the_rest_of_some_tiles_alone(rng: torch.Generator) -> None:
    """Infinities are candidates at any limit; tiles in another order each time."""
    residual, grad = (torch.randn(5000, generator=rng).mul_(1e38) for _ in range(2))
    grad[::4] = math.inf
    for _ in range(3):
        require_like_reference(grad, residual, 1666, None)


@each("hint", [0.0, math.nan, math.inf] + [-1.0, 1e-45, 1e30] * ALL)
def test_any_hint_gives_the_same(hint: float, rng: torch.Generator) -> None:
    residual, grad = torch.randn(3000, generator=rng), torch.randn(3000, generator=rng)
    require_like_reference(grad, residual, 40, torch.tensor(hint, dtype=torch.float64), apart=False)


@each("numel", [1, 2048, 2049, 65_536, 65_537] + [131_073, 200_000] * ALL)
def test_tiles_and_groups_that_end_anywhere(numel: int, rng: torch.Generator) -> None:
    residual, grad = torch.randn(numel, generator=rng), torch.randn(numel, generator=rng)
    k = max(1, numel // 300)
    for factor in (1.0, None) if ALL or numel < 65_536 else (1.0,):
        require_like_reference(grad, residual, k, right_hint(grad, residual, k, factor))


def test_slices_that_start_anywhere(rng: torch.Generator) -> None:
    residual, grad = torch.randn(5000, generator=rng), torch.randn(5000, generator=rng).bfloat16()
    for start in (1, 2, 4):
        require_like_reference(grad[start:], residual[start:], 50, torch.tensor(2.0), apart=False)


def test_a_choice_leaves_the_vector_as_it_is(rng: torch.Generator) -> None:
    vector = torch.randn(5000, generator=rng)
    before = vector.clone()
    expected = reference.topk(vector, 30)
    for hint in (None, expected.hint):
        got = ops.topk(vector, 30, hint)
        for one, other in zip(got[:3], expected[:3], strict=True):
            require_same(one, other)
    require_same(ops.select_topk(vector, 30), expected.indices)
    require_same(vector, before)


def test_too_many_candidates_are_no_harm(rng: torch.Generator) -> None:
    vector = torch.randint(
        1, 4, (20_000,), generator=rng
    ).float()  # two thirds are at the limit, and room is for a fifth
    require_like_reference(vector, torch.zeros_like(vector), 100, torch.tensor(3.0))


def test_float64_gradients_are_left_to_the_reference(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    import gaussiank.ops.triton as kernels

    monkeypatch.setattr(kernels, "take", None)
    wide = torch.randn(100, generator=rng, dtype=torch.float64)
    assert ops.accumulate_topk(wide, torch.zeros_like(wide), 3).values.dtype == torch.float64


@pytest.mark.skipif(not ALL, reason="make gpu-interpret")
def test_what_compress_compares_on_a_device_is_equal() -> None:
    import gaussiank.ops.triton as kernels

    accelerator.compare(kernels, torch.device("cpu"))
