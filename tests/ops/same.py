"""Equality to the bit, in which any NaN equals any other."""

from __future__ import annotations

import torch


def require_same(got: torch.Tensor, expected: torch.Tensor, *context: object) -> None:
    assert got.dtype == expected.dtype, context
    assert got.shape == expected.shape, context
    if not got.is_floating_point():
        assert torch.equal(got, expected), (got, expected, context)
        return
    both_nan = got.isnan() & expected.isnan()
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[got.itemsize]
    equal = (got.view(integer) == expected.view(integer)) | both_nan
    if not bool(equal.all()):
        at = int((~equal).reshape(-1).nonzero()[0])
        values = float(got.reshape(-1)[at]), float(expected.reshape(-1)[at])
        raise AssertionError(f"entry {at}: got {values[0]!r}, expected {values[1]!r}, {context}")
