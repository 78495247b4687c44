from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.each import each

from gaussiank.compressors import Capped, Compressor, Dense, GaussianK, RandomK, SelectContext, TopK
from gaussiank.ops import select_topk


@each("limit", [1, 7, 99])
@each("inner", [TopK(), Dense(), RandomK(), GaussianK(), GaussianK("published")], ids=repr)
@each("digits", [1, 6], ids=["ties", "no ties"])
def test_cut_keeps_the_largest_of_what_inner_chose(
    draw: Callable[..., torch.Tensor], digits: int, inner: Compressor, limit: int
) -> None:
    vector = draw("laplace", 5000).round(decimals=digits)
    whole = inner.select(vector, 150, SelectContext(step=4)).indices
    assert whole.numel() > limit
    cut = Capped(inner, limit).select(vector, 150, SelectContext(step=4)).indices
    assert cut.dtype == torch.int32
    assert cut.tolist() == whole[select_topk(vector[whole], limit)].tolist()


@each("limit", [150, 151, 10_000])
def test_within_the_limit_nothing_is_cut(draw: Callable[..., torch.Tensor], limit: int) -> None:
    vector = draw("normal", 5000)
    assert torch.equal(Capped(TopK(), limit).select(vector, 150).indices, TopK().select(vector, 150).indices)


def test_hint_of_inner_goes_in_and_out(draw: Callable[..., torch.Tensor]) -> None:
    vector = draw("laplace", 50_000)
    bare = GaussianK().select(vector, 500)
    capped = Capped(GaussianK(), 3).select(vector, 500)
    assert bare.hint is not None
    assert capped.hint == bare.hint
    again = Capped(GaussianK(), 3).select(vector, 500, SelectContext(hint=bare.hint * 1.01))
    assert again.hint == bare.hint * 1.01  # in band at once: the hint itself comes back


@each(
    ("inner", "limit", "capacity"),
    [
        (TopK(), 3, 3),
        (TopK(), 30, 10),
        (Dense(), 30, 30),
        (Dense(), 1000, 100),
        (GaussianK(), 1000, 13),
        (GaussianK("published"), 30, 30),
        (GaussianK("published"), 1000, 100),
    ],
    ids=repr,
)
def test_capacity_is_the_smaller_one(inner: Compressor, limit: int, capacity: int) -> None:
    assert Capped(inner, limit).capacity(10, 100) == capacity


def test_keeps_the_rest_when_inner_does() -> None:
    assert Capped(RandomK(), 3).keeps_rest
    assert not Capped(RandomK(feedback=False), 3).keeps_rest


def test_is_no_dense_step_and_leaves_the_look_for_nan_to_its_caller() -> None:
    assert not Capped(Dense(), 3).sends_all
    assert not Capped(TopK(), 3).nonfinite_first


@each("limit", [0, -4])
def test_refuses_a_limit_that_lets_nothing_through(limit: int) -> None:
    with pytest.raises(ValueError, match=rf"^limit must be at least 1 entry, got {limit}\. Raise the budget\.$"):
        Capped(TopK(), limit)
