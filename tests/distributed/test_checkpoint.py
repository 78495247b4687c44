"""Every worker's compression state through torch.distributed.checkpoint and back, also with fewer workers."""

from __future__ import annotations

import tempfile
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gaussiank
from gaussiank import checkpoint, reshard

ROWS = 60  # 60 x 50 weights: large enough for a name of their own


class Saved:
    """Something with a given state."""

    def __init__(self, state: dict[str, Any]) -> None:
        self._state = state

    def state_dict(self) -> dict[str, Any]:
        return self._state


def stepped(rank: int) -> tuple[nn.Module, gaussiank.Compression]:
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(50, ROWS))
    compression = gaussiank.compress(
        model, 0.01, compressor="gaussiank", momentum=gaussiank.MomentumCorrection(0.9), scope="layer"
    )
    for step in range(3):
        inputs = torch.randn(4, 50, generator=torch.Generator().manual_seed(100 * rank + step))
        model(inputs).square().sum().backward()
    return model, compression


def save(tensors: dict[str, Tensor], folder: str) -> None:
    from torch.distributed.checkpoint import FileSystemWriter
    from torch.distributed.checkpoint import save as save_all

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its own files
        save_all(tensors, storage_writer=FileSystemWriter(folder))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


def each_gets_its_own_back(rank: int, world_size: int, folder: str) -> tuple[bool, bool, list[str]]:
    model, compression = stepped(rank)
    state = compression.state_dict()
    save({"model/weight": model.module.weight.detach(), **checkpoint.shards(compression, rank)}, folder)
    dist.barrier()
    loaded = checkpoint.load_shards(folder, rank, world_size)
    twin = gaussiank.compress(DistributedDataParallel(nn.Linear(50, ROWS)), 0.01, compressor="gaussiank",
                              momentum=gaussiank.MomentumCorrection(0.9), scope="layer")  # fmt: skip
    twin.load_state_dict(loaded)
    return same(loaded, state), same(twin.state_dict(), state), sorted(checkpoint.names_in(folder, "gaussiank/"))


def one_of_fewer(rank: int, world_size: int, folder: str, workers: int) -> tuple[dict[str, Any], dict[str, Any]]:
    states = [checkpoint.load_shards(folder, source, world_size) for source in range(world_size)]
    wanted = [states[source] for source in reshard.sources(0, workers, world_size)]
    return checkpoint.load_shards(folder, 0, workers), reshard.reshard(wanted, 0, workers)


def test_each_worker_gets_its_own_state_back(two_workers: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        answers = two_workers.run(each_gets_its_own_back, folder)
        assert [(equal, loads) for equal, loads, _ in answers] == [(True, True), (True, True)]
        names = answers[0][2]
        assert [name for name in names if name.endswith("residual/weight")] == [
            f"gaussiank/worker-{rank:05d}/feedback/residual/weight" for rank in range(2)
        ]
        found, expected = two_workers.run(one_of_fewer, folder, 1)[0]
        assert same(found, expected)


def test_a_worker_that_did_not_save_is_named(two_workers: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        two_workers.run(save_only_one, folder)
        with pytest.raises(ValueError, match=r"^checkpoint must hold every worker's state, got those of ranks \[1\]"):
            checkpoint.load_shards(folder, 0, 2)
        with pytest.raises(ValueError, match=r"^tensors must hold 'gaussiank/worker-00000/rest', got 0 others"):
            checkpoint.unpack(checkpoint.read(folder, "gaussiank/worker-00000"), "gaussiank/worker-00000")
    with tempfile.TemporaryDirectory() as folder:
        two_workers.run(save_none, folder)
        with pytest.raises(ValueError, match=r"^checkpoint must hold a compression state, got .* without one"):
            checkpoint.load_shards(folder, 0, 2)


def save_only_one(rank: int, world_size: int, folder: str) -> None:
    save(checkpoint.shards(Saved({"rank": rank}), rank) if rank else {"other": torch.zeros(3)}, folder)


def save_none(rank: int, world_size: int, folder: str) -> None:
    save({"other": torch.zeros(3)}, folder)


def test_packing_keeps_every_kind_of_value() -> None:
    state = {
        "step": 3,
        "pair": (0.9, [torch.arange(2000), None]),
        7: {"nested": torch.ones(3, 500, dtype=torch.float64), "empty": torch.zeros(0), "text": "x"},
    }
    packed = checkpoint.pack(state, "p")
    assert sorted(packed) == ["p/7/nested", "p/pair/1/0", "p/rest"]
    back = checkpoint.unpack(packed, "p")
    assert isinstance(back["pair"], tuple)
    assert torch.equal(back["pair"][1][0], torch.arange(2000))
    assert torch.equal(back[7]["nested"], torch.ones(3, 500, dtype=torch.float64))
    assert (back["step"], back["pair"][0], back["pair"][1][1], back[7]["text"]) == (3, 0.9, None, "x")
    assert back[7]["empty"].shape == (0,)


def test_two_values_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^names in a state must differ once joined by /, got 'p/a/b' twice"):
        checkpoint.pack({"a/b": torch.ones(2000), "a": {"b": torch.ones(2000)}}, "p")
