from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gaussiank.compressors import GaussianK, MSTopK
from gaussiank_lab.bench.operators import PEERS

Draw = Callable[..., torch.Tensor]
EXACT = ["torch.topk", "torch.kthvalue", "numpy.argpartition", "published RedSync"]
LAWS = ["normal", "laplace", "t3", "uniform"]


def choose(name: str, vector: torch.Tensor, k: int) -> torch.Tensor:
    before = vector.clone()
    indices = PEERS[name].choose(vector, k, torch.Generator().manual_seed(0))
    assert torch.equal(vector, before)
    assert indices.unique().numel() == indices.numel()
    return indices


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", EXACT)
def test_exact_peers_find_the_largest(draw: Draw, name: str, law: str) -> None:
    vector = draw(law, 10_000)
    for k in (1, 10, 100):
        wanted = vector.abs().topk(k).indices
        assert sorted(choose(name, vector, k).tolist()) == sorted(wanted.tolist())


@pytest.mark.parametrize("key", ["normal d=100000 rho=0.01", "laplace d=100000 rho=0.001", "uniform d=1000 rho=0.01"])
def test_published_gaussian_counts_like_its_traces(
    paper_vectors: dict[str, Any], grid: Callable[[str, int], torch.Tensor], key: str
) -> None:
    law, numel, _ = key.split()
    expected = paper_vectors["grids"][key]
    vector = grid(law, int(numel[2:]))
    assert choose("published Gaussian_k", vector, expected["k"]).numel() == expected["published_trace"][-1][1]


@pytest.mark.parametrize("law", LAWS)
def test_published_gaussian_sends_what_our_mode_sends(draw: Draw, law: str) -> None:
    vector = draw(law, 30_000)
    for k in (30, 300):
        ours = GaussianK("published").select(vector, k).indices
        assert choose("published Gaussian_k", vector, k).tolist() == ours.tolist()


@pytest.mark.parametrize("law", LAWS)
def test_dgc_sends_at_most_k_of_the_large_ones(draw: Draw, law: str) -> None:
    vector = draw(law, 100_000)
    indices = choose("published DGC", vector, 1000)
    assert 800 <= indices.numel() <= 1000
    assert float(vector.abs()[indices].min()) >= float(vector.abs().topk(2000).values[-1])


def test_sidco_finds_k_of_an_exponential_law(draw: Draw) -> None:
    vector = draw("laplace", 300_000)
    for k in (300, 3000, 100_000):
        assert choose("published SIDCo-E", vector, k).numel() == pytest.approx(k, rel=0.2)


@pytest.mark.parametrize("law", LAWS)
def test_mstopk_sends_k_and_finds_what_ours_finds(draw: Draw, law: str) -> None:
    vector = draw(law, 30_000)
    for k in (1, 30, 300):
        indices = choose("published MSTopK", vector, k)
        assert sorted(indices.tolist()) == MSTopK().select(vector, k).indices.tolist()  # enough samplings for both


def test_every_peer_says_its_rule() -> None:
    assert all(peer.rule for peer in PEERS.values())
    assert len(PEERS) == len({peer.rule for peer in PEERS.values()})
