from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from tests.each import each

from gaussiank.compressors import SelectContext, TopK


@each("law", ["normal", "cauchy", "sparse", "integers", "constant"])
@each("k", [1, 20, 2000])
def test_chooses_the_largest_and_of_equals_the_first(draw: Callable[..., torch.Tensor], law: str, k: int) -> None:
    vector = draw(law, 2000)
    expected = np.sort(np.argsort(-vector.abs().numpy(), kind="stable")[:k])
    selection = TopK().select(vector, k, SelectContext(step=5, rank=2, hint=torch.tensor(1e9)))
    assert selection.indices.tolist() == expected.tolist()
    assert float(selection.hint) == float(vector.abs()[selection.indices].min())  # type: ignore[arg-type]


def test_capacity_is_k() -> None:
    assert TopK().capacity(5, 100) == 5
    assert TopK.nonfinite_first
    assert TopK().keeps_rest
    assert not TopK.sends_all
