"""Whether the kernels in Triton run on a device: compiled there, and compared with the reference, once and beforehand.

Triton comes with torch's builds for CUDA on Linux. Where it does not, cannot compile, or gives other bits, the
reference runs, and ``prepare`` says why.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from . import reference
from .rows import NarrowMean, RowFormat

if TYPE_CHECKING:
    from types import ModuleType

INTERPRET = "TRITON_INTERPRET"
"""Environment variable of Triton's: at 1 its interpreter runs kernels on the CPU, thousands of times slower."""

_NUMEL, _K = 70_001, 701  # what kernels are tried with: two groups of tiles, more than a tile's share of candidates

_found: dict[torch.device, ModuleType | None] = {}
_why_not: dict[str, str] = {}  # by type of device


def interpreted() -> bool:
    """Tell whether Triton's interpreter was asked for."""
    return os.environ.get(INTERPRET) == "1"


def kernels(device: torch.device) -> Any:
    """Return the module with the kernels for a device, tried once; None where the reference has to run."""
    if device not in _found:
        _found[device] = _tried(device)
    return _found[device]


def prepare(devices: Iterable[torch.device]) -> None:
    """Compile the kernels for devices, and warn, once in a process, of each type on which the reference runs instead.

    Without it, they are compiled when they are first used.
    """
    for device in sorted(devices, key=str):
        if device.type in ("cpu", "meta") or kernels(device) is not None or device.type in _why_not:
            continue
        _why_not[device.type] = why = _reason(device)
        warnings.warn(
            f"the kernels of gaussiank do not run on {device.type}: {why}. Torch's own ops run in their place: "
            "the results are the same, each bucket takes longer.",
            stacklevel=3,
        )


_errors: dict[torch.device, str] = {}


def _reason(device: torch.device) -> str:
    return _errors.get(device, "they are written for CUDA alone")


def _tried(device: torch.device) -> ModuleType | None:
    real = device.type == "cuda" and torch.cuda.is_available()
    if not real and not (device.type in ("cpu", "cuda") and interpreted()):
        return None
    try:
        from . import triton

        if real and not interpreted():
            compare(triton, device)
    except Exception as error:  # noqa: BLE001  Triton raises what it likes, and so do compilers beneath it
        _errors[device] = f"{type(error).__name__}: {str(error).strip() or 'without a word'}".splitlines()[0]
        return None
    return triton


def compare(found: Any, device: torch.device) -> None:
    """Compile every variant of the kernels, and compare what they do with the reference, bit for bit.

    Raises:
        RuntimeError: they differ.
    """
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(_NUMEL + 1, generator=generator).to(device) for _ in range(2))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for start in (0, 1):  # slices that begin at a multiple of 16 bytes, and others
            grad, residual = second.to(dtype)[start:], first[start:]
            out, expected_out = torch.empty_like(residual), torch.empty_like(residual)
            expected = reference.accumulate_topk(grad, residual, _K, out=expected_out)
            for hint in (None, expected.hint):
                _require_same("take", found.take(residual, _K, hint, grad, out), expected)
                _require_same("take", [out], [expected_out])
    for start in (0, 1):
        chosen = reference.topk(first[start:], _K)
        _require_same("topk", found.take(first[start:], _K, None), chosen)
    for value_bits, offset_bits in ((16, 16), (32, 16), (16, 12), (2, 12)):
        _compare_rows(found, _format(value_bits, offset_bits), first, second)


def _format(value_bits: int, offset_bits: int) -> RowFormat:
    """Return some format, of no wire in particular."""
    counts_at, chunks = 20, -(-_NUMEL >> offset_bits)
    full_at = counts_at + _bytes_of(offset_bits * chunks)
    offsets_at = full_at + _bytes_of(chunks)
    values_at = offsets_at + _bytes_of(offset_bits * _K)
    used = values_at + _bytes_of(value_bits * _K) + (2 * -(-_K // 64) if value_bits == 2 else 0)
    return RowFormat(_NUMEL, _K, 0, counts_at, full_at, offsets_at, values_at, used, value_bits, offset_bits)


def _bytes_of(bits: int) -> int:
    return -(-bits // 8)


def _rounded(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Return what a row makes of values."""
    if bits != 2:
        return values if bits == 32 else values.bfloat16().float()
    blocks, weights = (torch.zeros(-(-values.numel() // 64) * 64, device=values.device).double() for _ in range(2))
    blocks[: values.numel()], weights[: values.numel()] = values.double(), 1.0
    blocks, weights = blocks.view(-1, 64), weights.view(-1, 64)
    scale = reference.two_level_scale(blocks.abs(), weights).bfloat16().double()
    levels = blocks.sign() * scale * reference.two_level_multiples(blocks.abs(), scale)
    return levels.flatten()[: values.numel()].float()


def _compare_rows(found: Any, layout: RowFormat, first: torch.Tensor, second: torch.Tensor) -> None:
    total, rows, residuals = torch.zeros_like(first[1:]), [], []
    for residual, grad in ((first, second), (second, first), (first, first)):
        expected = residual[1:] + grad[1:]
        taken = reference.topk(expected, _K)
        sent = _rounded(taken.values, layout.value_bits)
        total.index_add_(0, taken.indices, sent)
        expected[taken.indices] = taken.values - sent
        out = torch.empty_like(expected)
        row = found.take(residual[1:].clone(), _K, taken.hint, grad[1:].clone(), out, layout).row
        rows.append(row)
        residuals.append((out, expected))
    for out, expected in residuals:
        _require_same("emit", [out], [expected])
    mean = torch.empty_like(total)
    finite = found.mean_of_rows(torch.stack(rows), layout, mean)
    _require_same("decode_mean", [mean, finite], [total / 3, torch.ones_like(finite)])
    for dtype in (torch.bfloat16, torch.float16):
        narrow = NarrowMean(torch.empty_like(total, dtype=dtype), second[1:].clone())
        finite = found.mean_of_rows(torch.stack(rows), layout, mean, narrow)
        sent = (total / 3).to(dtype)
        rest = second[1:] + (total / 3 - sent.float())
        _require_same("decode_mean", [*narrow, finite], [sent, rest, torch.ones_like(finite)])


def _require_same(kernel: str, got: Iterable[Any], expected: Iterable[Any]) -> None:
    if not all(torch.equal(one, other) for one, other in zip(got, expected, strict=True)):
        raise RuntimeError(f"{kernel} gives other bits than the reference")
