"""What ``compress`` refuses of FSDP2: in a sentence, with what to write instead, before or in the first backward."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed._composable.replicate_with_fsdp import replicate
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.checkpoint import checkpoint

import gaussiank
from gaussiank.fsdp.shard import Plan

NAMES = ("replicate", "shard")


@pytest.fixture
def mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (1, 1), mesh_dim_names=NAMES)


def two(mesh: DeviceMesh) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    for module in (*model, model):
        fully_shard(module, mesh=mesh)
    return model


def train(model: nn.Module) -> None:
    model(torch.ones(2, 4, requires_grad=True)).sum().backward()


def fsdp1() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of a CPU
        return nn.Sequential(FullyShardedDataParallel(nn.Linear(4, 4), device_id=torch.device("cpu")))


def on_meta(mesh: DeviceMesh) -> nn.Module:
    with torch.device("meta"):
        return fully_shard(nn.Linear(4, 4), mesh=mesh["shard"])


def stepped_in_backward(mesh: DeviceMesh) -> nn.Module:
    model = two(mesh["shard"])
    next(model.parameters()).register_post_accumulate_grad_hook(lambda _: None)
    return model


def linear(dtype: torch.dtype) -> nn.Linear:
    model = nn.Linear(4, 4)
    model.weight, model.bias = (nn.Parameter(one.detach().to(dtype)) for one in (model.weight, model.bias))
    return model


def around(inner: nn.Module, mesh: DeviceMesh) -> nn.Module:
    return fully_shard(nn.Sequential(inner, nn.Linear(4, 4)), mesh=mesh["shard"])


def test_what_is_no_model_of_shards_is_refused(mesh: DeviceMesh) -> None:
    alone = "model must be sharded by fully_shard"
    cases: list[tuple[nn.Module, dict[str, Any], str]] = [
        (
            two(mesh["shard"]),
            {"mesh": None},
            "mesh must be the DeviceMesh with the dimensions replicate and shard for a",
        ),
        (two(mesh), {}, "module '0' must be sharded over mesh[\"shard\"] alone, got a mesh with replicas, over which"),
        (fsdp1().append(two(mesh["shard"])), {}, f"{alone}, got FullyShardedDataParallel (FSDP1) at '0'. Write"),
        (
            nn.Sequential(two(mesh["shard"])),
            {},
            "model must be the root that fully_shard was called on, got Sequential",
        ),
        (around(replicate(nn.Linear(4, 4)), mesh), {}, f"{alone}, got replicate() at '0', which reduces over all"),
        (around(DDP(nn.Linear(4, 4)), mesh), {}, f"{alone} alone, got DistributedDataParallel at '0'."),
        (on_meta(mesh), {}, "parameter weight must have its values, got one on the meta device."),
        (
            fully_shard(linear(torch.complex64), mesh=mesh["shard"]),
            {},
            "dtype of the gradient of weight must be one of ",
        ),
        (
            stepped_in_backward(mesh),
            {"scope": "model"},
            "model must be stepped after backward, got 0.weight with a hook",
        ),
    ]
    for model, settings, beginning in cases:
        with pytest.raises(ValueError, match=r"\. ") as caught:
            gaussiank.compress(model, **{"mesh": mesh, **settings})
        assert str(caught.value).startswith(beginning)


def test_meshes_without_both_dimensions_are_refused(mesh: DeviceMesh) -> None:
    flat = init_device_mesh("cpu", (1,), mesh_dim_names=("shard",))
    with pytest.raises(ValueError, match=r"^mesh must have two dimensions, replicas and then shards, got "):
        gaussiank.compress(two(flat), mesh=flat)


def test_a_hook_that_is_set_already_is_refused(mesh: DeviceMesh) -> None:
    other, ours = two(mesh["shard"]), two(mesh["shard"])
    other[1].set_all_reduce_hook(print)
    gaussiank.compress(ours, mesh=mesh)
    for model, name in ((other, "1"), (ours, "root|0")):
        with pytest.raises(
            RuntimeError, match=rf"^model must have no all-reduce hook yet, got one on module '({name})'"
        ):
            gaussiank.compress(model, mesh=mesh)


class Reentrant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.parts[1], self.parts[0](x), use_reentrant=True)


def test_what_changes_after_compress_is_found_in_the_first_backward(mesh: DeviceMesh) -> None:
    inner, hooked, nested = two(mesh["shard"]), two(mesh["shard"]), Reentrant()
    for module in (*nested.parts, nested):
        fully_shard(module, mesh=mesh["shard"])
    kept = [gaussiank.compress(model, mesh=mesh) for model in (inner, hooked, nested)]
    around = fully_shard(nn.Sequential(inner, nn.Linear(4, 4)), mesh=mesh["shard"])
    hooked[1].set_all_reduce_hook(print)
    for model, text in (
        (around, "fully_shard must come before gaussiank.compress, got a call on a module around the compressed one."),
        (hooked, "every FSDP module must have the hook of gaussiank.compress, got '1' without. Call fully_shard on"),
        (nested, "backward must not run inside another one beside a compression, as torch.utils.checkpoint with "),
    ):
        with pytest.raises(RuntimeError, match=r"\. ") as caught:
            train(model)
        assert str(caught.value).startswith(text)
    assert [compression.step for compression in kept] == [0, 0, 0]


def test_another_order_of_gradients_is_found_before_any_is_trusted(
    mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = Plan.pieces
    monkeypatch.setattr(Plan, "pieces", lambda plan, vector: pieces(plan, vector.flip(0)))
    with pytest.raises(RuntimeError, match=r"^FSDP2 must hand gradients to its hook in the order of torch 2.13, got"):
        gaussiank.compress(two(mesh["shard"]), mesh=mesh)


def test_a_torch_without_the_hook_is_refused(mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    model = two(mesh["shard"])
    monkeypatch.delattr(FSDPModule, "set_all_reduce_hook")
    with pytest.raises(
        ValueError, match=r"^torch must have FSDPModule.set_all_reduce_hook, and FSDP2's fields as 2.13"
    ):
        gaussiank.compress(model, mesh=mesh)


def test_a_compression_of_shards_is_not_copied(mesh: DeviceMesh) -> None:
    with pytest.raises(TypeError, match=r"^a compression of fully_shard must not be copied or pickled, and neither"):
        copy.copy(gaussiank.compress(two(mesh["shard"]), mesh=mesh))
