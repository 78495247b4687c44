"""What a part answers, what parts have in common: the gradient that they take, and how bits are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

DENSITY = 0.001
NUMEL = {"cpu": 20_000, "cuda": 2_000_000}
WIRES = ("chunks+bf16", "chunks12+2bit")
"""Those whose rows kernels write and read, as far as users take them: the default, and the one of fewest bits."""


@dataclass
class Answer:
    """What a part has found.

    Args:
        passed: whether all is as it must be; None where nothing was decided: only measured, or not possible here.
        said: in a sentence.
        rows: one for each case.
    """

    passed: bool | None
    said: str
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Check:
    """A question.

    Args:
        name: of the part.
        question: that it answers.
        limit_s: seconds after which it is ended.
        answer: what answers it, on a device.
    """

    name: str
    question: str
    limit_s: float
    answer: Callable[[torch.device], Answer]


def judged(rows: list[dict[str, Any]], what: str) -> Answer:
    """Return the answer of rows that each say whether they are ``right``."""
    wrong = [row for row in rows if not row["right"]]
    said = f"{len(rows) - len(wrong)} of {len(rows)} {what}"
    return Answer(not wrong, said + (f"; not {wrong[0]['case']}" if wrong else ""), rows)


def gradient_of(numel: int, step: int) -> Tensor:
    """Heavy tails and many ties, the same bits on every machine."""
    generator = torch.Generator().manual_seed(100 * step + (dist.get_rank() if dist.is_initialized() else 0))
    return torch.randint(-99, 100, (3, numel), generator=generator).float().prod(0) * 2.0**-20


def same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Tell whether tensors on the CPU have the same bits; NaN equals NaN."""
    return len(left) == len(right) and all(
        one.shape == two.shape and one.dtype == two.dtype and bool(_equal(one, two).all())
        for one, two in zip(left, right, strict=True)
    )


def _equal(one: Tensor, two: Tensor) -> Tensor:
    if not one.is_floating_point():
        return one == two
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[one.itemsize]
    return (one.view(bits) == two.view(bits)) | (one.isnan() & two.isnan())
