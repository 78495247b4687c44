from __future__ import annotations

import re

import pytest
import torch
from tests.each import each

from gaussiank.compressors import Dense


@each("k", [1, 3, 5])
def test_chooses_all_whatever_k(k: int) -> None:
    vector = torch.tensor([0.0, -1.0, 2.0, 0.0, 5.0])
    indices, hint = Dense().select(vector, k)
    assert indices.tolist() == [0, 1, 2, 3, 4]
    assert indices.dtype == torch.int32
    assert hint is None


def test_capacity_is_the_vector() -> None:
    assert Dense().capacity(1, 100) == 100
    assert Dense.sends_all
    assert Dense.nonfinite_first
    assert Dense().keeps_rest


def test_refuses_what_is_no_vector() -> None:
    message = (
        "accumulated must be flat and contiguous, got shape (2, 3) with strides (3, 1). Pass accumulated.reshape(-1)"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Dense().select(torch.zeros(2, 3), 1)


def test_refuses_other_values() -> None:
    with pytest.raises(ValueError, match="values must be one of same, bf16, fp16, got 'int8'"):
        Dense(values="int8")
