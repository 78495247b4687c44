"""Rows that kernels write and read, against the codec: the same bytes, residuals and means."""

from __future__ import annotations

import itertools
import math

import torch
from tests.each import each
from tests.ops.conftest import LAWS
from tests.ops.same import require_same
from tests.ops.triton.conftest import ALL

from gaussiank import ops
from gaussiank.codec import HEADER_BYTES, KERNEL_WIRES, Wire
from gaussiank.ops import dispatch, reference
from gaussiank.sparse import SparseGradient


def vectors(numel: int, rng: torch.Generator, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    residual, grad = torch.randn(numel, generator=rng), torch.randn(numel, generator=rng)
    if rank == 1 and numel > 1:
        residual[-1], residual[numel // 2] = 3.4e38, -3.39e38  # as bfloat16 they would overflow
        grad[-1] = grad[numel // 2] = 0.0
    return residual, grad


def row_of(residual: torch.Tensor, grad: torch.Tensor, k: int, wire: Wire) -> torch.Tensor:
    """Return the row of a kernel, once all of it was compared with the codec."""
    numel = residual.numel()
    out, expected_out = torch.full_like(residual, math.nan), torch.empty_like(residual)
    expected = reference.accumulate_topk(grad, residual, k, out=expected_out)
    with dispatch.use_backend("reference"):
        packed = wire.pack(SparseGradient(expected.indices, expected.values, numel), capacity=k)
    if packed.error is not None:
        expected_out.index_add_(0, expected.indices, packed.error)
    layout = wire.row_format(k, numel)
    assert layout is not None
    taken = ops.accumulate_topk(grad, residual, k, expected.hint, out=out, row=layout)
    require_same(taken.indices, expected.indices)
    require_same(taken.values, expected.values)
    require_same(out, expected_out, numel, k, str(wire))
    assert isinstance(taken, ops.TakenRow)
    (row, counters), payload = layout.parted(taken.row), packed.row
    assert row.numel() == layout.length
    assert counters.tolist() == [0] * 16
    assert layout.used == payload.numel()
    head = payload[:HEADER_BYTES].clone()
    head[3] |= 0x80  # written without a checksum, which is zero
    head[-4:] = 0
    assert torch.equal(row[:HEADER_BYTES], head)
    assert torch.equal(row[HEADER_BYTES : layout.used], payload[HEADER_BYTES:])
    assert not bool(row[layout.used :].any())
    return row


SIZES = [(5000, 70), (1, 1), (70_000, 333), (65_536, 65_536), (200_000, 100_000)]
EVERY = [(wire, *size) for wire in KERNEL_WIRES for size in SIZES]
FEW = [one for number, one in enumerate(EVERY) if one[1:] in SIZES[:1] or (one[1:] in SIZES[1:3] and number % 2)]


@each(("wire", "numel", "k"), EVERY if ALL else FEW)
def test_rows_are_those_of_the_codec_and_so_is_their_mean(numel: int, k: int, wire: str, rng: torch.Generator) -> None:
    code = Wire.parse(wire)
    rows = torch.stack([row_of(*vectors(numel, rng, rank), k, code) for rank in range(3)])
    parts, expected, mean = [code.decode(row, numel) for row in rows], torch.empty(numel), torch.full((numel,), 5.0)
    finite = reference.scatter_mean(parts, expected)
    layout = code.row_format(k, numel)
    assert layout is not None
    found = ops.mean_of_rows(rows, layout, mean)
    assert found is not None
    assert bool(found) == bool(finite)
    require_same(mean, expected)
    for dtype in (torch.bfloat16, torch.float16) if ALL else (torch.bfloat16 if "bf16" in wire else torch.float16,):
        sent, residual, sums = expected.to(dtype), torch.randn(numel, generator=rng), torch.empty(numel)
        residual[::3] = -0.0  # the reference adds to all of it
        rounded_off = expected - sent.float()
        narrow = ops.NarrowMean(torch.full_like(sent, 5.0), residual.clone())
        found = ops.mean_of_rows(rows, layout, sums, narrow)
        require_same(narrow.grad, sent, dtype)
        require_same(narrow.residual, residual + rounded_off, dtype)
        assert bool(found) == bool(torch.isfinite(rounded_off).all()), dtype


HARD = [*itertools.product(("chunks12+2bit", "chunks12+bf16"), LAWS, ((5000, 65), (5000, 2000), (150_000, 40)))]
SOME = [("chunks12+2bit", "infinities and NaN", (5000, 130)), ("chunks12+2bit", "few non-zeros", (140_000, 300))]
SOME += [("chunks12+bf16", "huge", (5000, 65)), ("chunks12+2bit", "signed zeros", (5000, 65))]


@each(("wire", "law", "size"), HARD if ALL else SOME)
def test_rows_of_hard_vectors(wire: str, law: str, size: tuple[int, int], rng: torch.Generator) -> None:
    """Blocks with infinities, of zeros, of one value; and such that lie in several groups."""
    numel, k = size
    code = Wire.parse(wire)
    row = row_of(LAWS[law](numel, rng), LAWS[law](numel, rng), k, code)
    layout, mean, expected = code.row_format(k, numel), torch.empty(numel), torch.empty(numel)
    assert layout is not None
    found = ops.mean_of_rows(row[None], layout, mean)
    assert bool(found) == bool(reference.scatter_mean([code.decode(row, numel)], expected))
    require_same(mean, expected, wire, law, size)


@each("wire", ["chunks+bf16", "chunks12+2bit"])
def test_chunks_that_are_taken_whole(wire: str, rng: torch.Generator) -> None:
    code, numel, k = Wire.parse(wire), 65_536 + 40, 65_536 + 3
    if wire.startswith("chunks12"):
        k = 4096 * 3 + 5
    residual = torch.randn(numel, generator=rng)
    residual[: k - 5] += 100
    row = row_of(residual, torch.zeros(numel), k, code)
    layout, mean = code.row_format(k, numel), torch.empty(numel)
    assert layout is not None
    assert bool(ops.mean_of_rows(row[None], layout, mean))
    require_same(mean, code.decode(row, numel).dense())


@each("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_seen(bad: float, rng: torch.Generator) -> None:
    layout = Wire("chunks12", "2bit").row_format(20, 3000)
    assert layout is not None
    rows = []
    for value in (bad, 0.0):
        residual, grad = torch.randn(3000, generator=rng), torch.randn(3000, generator=rng)
        grad[77] += value
        taken = ops.accumulate_topk(grad, residual, 20, out=torch.empty(3000), row=layout)
        assert isinstance(taken, ops.TakenRow)
        rows.append(taken.row)
    mean = torch.empty(3000)
    finite = ops.mean_of_rows(torch.stack(rows), layout, mean)
    assert finite is not None
    assert not bool(finite)
    require_same(mean[77], torch.tensor(bad) / 2)


def test_rows_of_sums_that_overflow_are_seen() -> None:
    layout = Wire("chunks", "fp32").row_format(1, 10)
    assert layout is not None
    vector = torch.zeros(10)
    vector[3] = 3.4e38
    taken = ops.accumulate_topk(vector, torch.zeros(10), 1, row=layout)
    assert isinstance(taken, ops.TakenRow)
    finite = ops.mean_of_rows(torch.stack([taken.row, taken.row]), layout, torch.empty(10))
    assert finite is not None
    assert not bool(finite)
