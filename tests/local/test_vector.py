from __future__ import annotations

import math

import torch
from tests.each import each
from torch import Tensor

from gaussiank.local.notes import digest
from gaussiank.local.vector import Vector, norm_of, split, vectors_of


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 4, 4, generator=generator).to(memory_format=torch.channels_last)
    return {"image": image.to(dtype), "scale": torch.randn((), generator=generator).to(dtype)}


@each("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_what_was_not_learnt_is_no_difference(dtype: torch.dtype) -> None:
    held = parameters(dtype)
    vector = Vector(held)
    vector.agreed.add_(1e-6)  # what a local weight of few bits cannot hold
    vector.write()
    assert not vector.difference().any()
    held["scale"] -= 0.5
    assert vector.difference()[-1] == vector.agreed[-1].to(dtype).to(vector.dtype) - held["scale"].to(vector.dtype)
    assert int(vector.difference().count_nonzero()) == 1
    vector.write()
    assert torch.equal(torch.cat([one.flatten() for one in held.values()]), vector.agreed.to(dtype))


@each("dtype", [torch.float32, torch.bfloat16])
def test_steps_in_between_are_carried_or_mixed(dtype: torch.dtype) -> None:
    held = {"w": torch.tensor([1.0, 2.0]).to(dtype)}
    vector = Vector(held)
    began = vector.local()
    held["w"] += 0.5
    vector.agreed.copy_(torch.tensor([4.0, 8.0]))
    vector.carry(began)
    assert held["w"].tolist() == [4.5, 8.5]
    assert vector.difference().tolist() == [-0.5, -0.5]
    vector.mix(0.5)
    assert held["w"].tolist() == [4.25, 8.25]


def test_a_vector_holds_one_dtype() -> None:
    mixed = {"a": torch.zeros(3), "b": torch.zeros(2), "c": torch.zeros(2, dtype=torch.bfloat16), "d": torch.zeros(1)}
    assert [vector.layout.names for vector in vectors_of(mixed)] == [("a", "b"), ("c",), ("d",)]


@each("sizes", [(1, 1, 1, 1), (100, 1, 1, 1), (1, 1, 1, 100), (5, 50, 5, 40, 1, 1)])
@each("count", [1, 2, 3, 4])
def test_fragments_hold_everything_once_and_none_is_empty(sizes: tuple[int, ...], count: int) -> None:
    held = {f"p{number}": torch.zeros(size) for number, size in enumerate(sizes)}
    groups = split(held, count)
    assert len(groups) == count
    assert all(groups)
    assert [name for group in groups for name in group] == list(held)
    if max(sizes) < sum(sizes) / count:
        assert max(sum(one.numel() for one in group.values()) for group in groups) < 2 * sum(sizes) / count


def test_a_hash_sees_every_bit_and_every_place() -> None:
    vector = torch.randn(3_000_001, generator=torch.Generator().manual_seed(1))
    seen = {digest([vector])}
    for place in (0, 262_143, 262_144, 3_000_000):
        other = vector.clone()
        other.view(torch.int32)[place] ^= 1
        seen.add(digest([other]))
    swapped = vector.clone()
    swapped[[5, 9]] = vector[[9, 5]]
    seen |= {digest([swapped]), digest([vector[:-1]]), digest([vector.double()])}
    assert len(seen) == 8


def test_a_norm_overflows_and_vanishes_in_no_dtype() -> None:
    for dtype, value in ((torch.float32, 1e30), (torch.float32, 1e-30), (torch.float64, 1e100), (torch.float32, 0.0)):
        assert math.isclose(norm_of([torch.full((2, 8), value, dtype=dtype)]), 4 * value, rel_tol=1e-6)
    assert math.isclose(norm_of([torch.full((1000,), 1.0, dtype=torch.bfloat16)] * 9), math.sqrt(9000), rel_tol=1e-6)
    assert norm_of([torch.tensor([1.0, math.inf])]) == math.inf
    assert math.isnan(norm_of([torch.tensor([1.0, math.nan])]))
