"""Histograms by leading bits: the kernel counts what the plain form counts."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import numpy as np
import pytest
import torch
from tests.each import each
from tests.ops.conftest import each_backend, each_law

from gaussiank import ops
from gaussiank.ops.histogram import reference_magnitudes

Law = Callable[[int, torch.Generator], torch.Tensor]


def cut(numel: int) -> list[int]:
    return [numel // 2, 0, 1, numel - numel // 2 - 1]


@each_law
@each_backend
@each(("bits", "part_bits"), [(4, 1), (0, 0), (7, 7)])
def test_every_backend_counts_what_the_plain_form_counts(
    law: Law, bits: int, part_bits: int, rng: torch.Generator
) -> None:
    for numel in (2, 63, 2049):
        vector = law(numel, rng)
        got = ops.magnitudes(vector, cut(numel), bits, part_bits)
        expected = reference_magnitudes(vector, cut(numel), bits, part_bits)
        assert torch.equal(got.counts, expected.counts)
        assert torch.equal(got.part_counts, expected.part_counts)
        assert torch.allclose(got.energy, expected.energy, rtol=1e-12, atol=0)
        assert torch.allclose(got.part_energy, expected.part_energy, rtol=1e-12, atol=0)


@each_backend
def test_counts_are_those_of_numpy(rng: torch.Generator) -> None:
    vector = torch.randn(5000, generator=rng)
    found = ops.magnitudes(vector, [2000, 3000], 4, 1)
    edges = np.arange((256 << 4) + 1, dtype=np.uint32) << np.uint32(19)
    codes = vector.numpy().view(np.uint32)
    for sign in (0, 1):
        of_sign = codes[codes >> 31 == sign] & 0x7FFFFFFF
        assert found.counts[sign].tolist() == np.histogram(of_sign, bins=edges)[0].tolist()
    assert float(found.energy.sum()) == pytest.approx(float(vector.double().square().sum()))
    assert found.part_energy.sum(dim=1).tolist() == pytest.approx(
        [float(part.double().square().sum()) for part in vector.split([2000, 3000])]
    )


def test_large_vectors_come_in_groups(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    room = import_module("gaussiank.ops.histogram")
    vector, numels = torch.randn(3000, generator=rng), [1000, 0, 1, 1499, 500]
    expected = reference_magnitudes(vector, numels, 4, 1)
    for group_numel, group_parts in ((700, 256), (1 << 22, 2)):
        monkeypatch.setattr(room, "_GROUP_NUMEL", group_numel)
        monkeypatch.setattr(room, "_GROUP_PARTS", group_parts)
        got = reference_magnitudes(vector, numels, 4, 1)
        assert torch.equal(got.part_counts, expected.part_counts)
        assert torch.allclose(got.part_energy, expected.part_energy)


@each(
    ("arguments", "message"),
    [
        (([3], 4, 1), "numels must add up to the 4 entries, got 3"),
        (([4], 1, 2), r"bits must be in \[part_bits, 7\], got 1 and part_bits 2"),
        (([4], 8, 1), r"bits must be in \[part_bits, 7\], got 8"),
    ],
)
def test_mistakes(arguments: tuple[list[int], int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.magnitudes(torch.ones(4), *arguments)
