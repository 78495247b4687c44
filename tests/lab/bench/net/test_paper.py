"""The paper's exchange, on one worker: what is not sent stays."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from gaussiank_lab.bench.net.exchanges import PaperExchange


@pytest.fixture
def group() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as place:
        dist.init_process_group("gloo", init_method=f"file://{place}/store", rank=0, world_size=1)
        yield
        dist.destroy_process_group()


@pytest.mark.parametrize("rule", ["torch.topk", "published DGC", "published Gaussian_k"])
def test_what_is_not_sent_comes_later(group: None, rule: str) -> None:
    random = torch.Generator().manual_seed(0)
    exchange = PaperExchange(rule, density=0.05)
    total, sent = torch.zeros(5000), torch.zeros(5000)
    for _ in range(5):
        grads = [torch.randn(40, 50, generator=random), torch.randn(3000, generator=random)]
        total += torch.cat([grad.reshape(-1) for grad in grads])
        exchange.reduce(grads)
        mean = torch.cat([grad.reshape(-1) for grad in grads])
        assert 0 < int(mean.count_nonzero()) == exchange.kept < 1500
        sent += mean
    assert exchange._residual is not None
    assert torch.allclose(sent + exchange._residual, total, atol=1e-5)


def test_topk_sends_the_largest(group: None) -> None:
    grads = [torch.tensor([3.0, -4.0, 1.0, 0.5])]
    PaperExchange("torch.topk", density=0.25).reduce(grads)
    assert grads[0].tolist() == [0, -4, 0, 0]
