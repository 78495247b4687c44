"""What ``compress`` takes and what it refuses, in a sentence, before the first forward."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._C._distributed_c10d import BuiltinCommHookType
from torch.distributed._composable.replicate import replicate
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel as DDP

import gaussiank
from gaussiank import doors

INSTEAD = "which is not supported yet. Leave compress out, or use DistributedDataParallel in its place."


class Given(nn.Module):
    """Parameters of given numels; the loss is the sum of them all."""

    def __init__(self, *numels: int) -> None:
        super().__init__()
        self.given = nn.ParameterList(nn.Parameter(torch.ones(numel)) for numel in numels)

    def forward(self) -> Tensor:
        return torch.stack([one.sum() for one in self.given]).sum()


class Holding(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


def huge(*numels: int, **settings: Any) -> DDP:
    """Wrap small parameters, and give them their numels without memory for them."""
    model = DDP(Given(*[1] * len(numels)), **settings)
    for place, numel in enumerate(numels):
        model.module.given[place] = nn.Parameter(torch.empty(numel, device="meta"))
    return model


def refused(model: nn.Module, **settings: Any) -> str:
    with pytest.raises(ValueError, match=r"\. ") as caught:
        gaussiank.compress(model, **settings)
    return str(caught.value)


def test_other_wrappers_are_named() -> None:
    begins = "model must be wrapped in DistributedDataParallel, got "
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of a CPU
        sharded = FullyShardedDataParallel(nn.Linear(3, 1), device_id=torch.device("cpu"))
    for model, text in (
        (sharded, f"FullyShardedDataParallel of FullyShardedDataParallel (FSDP1), {INSTEAD}"),
        (replicate(nn.Linear(3, 1)), f"DDPLinear of replicate, {INSTEAD}"),
        (nn.Linear(3, 1), "Linear. Wrap it first: gaussiank.compress(DistributedDataParallel(model))."),
    ):
        assert refused(model) == begins + text
    with pytest.raises(ValueError, match=r"^mesh must be None for a model that fully_shard has not sharded, got one"):
        gaussiank.compress(DDP(nn.Linear(3, 1)), mesh=init_device_mesh("cpu", (1, 1)))
    assert refused(Holding(Holding(DDP(nn.Linear(3, 1))))) == (
        "model must be a DistributedDataParallel, got Holding that holds one. Give it: "
        "gaussiank.compress(model.inner.inner)."
    )


def test_a_compiled_model_is_taken() -> None:
    model = DDP(nn.Linear(30, 10))
    compiled = torch.compile(model, backend="eager")
    compression = gaussiank.compress(compiled, 0.1)
    model(torch.ones(2, 30)).square().mean().backward()
    assert (compression.step, compression.metrics.kept) == (1, 31)


def test_models_that_another_tool_reduces_are_refused() -> None:
    with torch._dynamo.config.patch(optimize_ddp="python_reducer"):
        assert refused(DDP(nn.Linear(3, 1))).startswith("torch._dynamo.config.optimize_ddp must not be python_reducer")
    skipping = DDP(nn.Linear(3, 1), find_unused_parameters=True)
    skipping.skip_all_reduce_unused_params = True  # as DDP's argument of newer torch does
    assert refused(skipping).startswith("skip_all_reduce_unused_params must be False beside a compression, got True: ")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its use of torch.jit
        from torch.distributed.optim import _apply_optimizer_in_backward
    for wrapped_first in (True, False):
        module = nn.Linear(3, 1)
        model = DDP(module) if wrapped_first else None
        _apply_optimizer_in_backward(torch.optim.SGD, module.parameters(), {"lr": 0.1})
        assert refused(model or DDP(module)).startswith("model must be stepped after backward, got parameters with ")


def test_a_model_with_a_hook_that_is_built_into_ddp_is_refused() -> None:
    model = DDP(nn.Linear(3, 1))
    model._register_builtin_comm_hook(BuiltinCommHookType.FP16_COMPRESS)
    with pytest.raises(RuntimeError, match=r"^model must have no communication hook yet, got one that has a hook"):
        gaussiank.compress(model)


def test_vectors_that_are_too_long_are_refused_with_what_to_do() -> None:
    half, limit = 2**30, 2**31 - 1
    split: dict[str, Any] = {"find_unused_parameters": True}
    bucket = f"a bucket of DDP must have at most {limit} entries, got up to {2 * half}"
    cases: list[tuple[tuple[int, ...], dict[str, Any], dict[str, Any], str]] = [
        ((2 * half,), {}, {}, f"parameter given.0 must have at most {limit} entries, got {2 * half}. Split or "),
        ((half, half), {}, {}, f"{bucket}, because DDP's first step has one for all parameters of a dtype. Set"),
        ((half, half), {**split, "bucket_cap_mb": 10_000}, {}, f"{bucket}. Lower bucket_cap_mb when you wrap"),
        ((half, half), split, {"scope": "model"}, f"scope must be bucket or layer for a model of more than {limit}"),
    ]  # fmt: skip
    for numels, ddp, settings, beginning in cases:
        assert refused(huge(*numels, **ddp), **settings).startswith(beginning)
    gaussiank.compress(huge(half, half, **split))
    gaussiank.compress(huge(half, half), compressor="dense")


def test_an_empty_parameter_may_be_alone_in_its_bucket() -> None:
    for numels in ((0,), (0, 50), (50, 0, 70)):
        for scope in ("bucket", "layer", "model"):
            model = DDP(Given(*numels), bucket_cap_mb=1e-7)
            compression = gaussiank.compress(model, 0.1, scope=scope)
            for _ in range(3):
                model().backward()
            assert (compression.step, compression.metrics.numel) == (3, sum(numels))
            assert compression.metrics.kept == round(0.1 * sum(numels))


def test_kernels_are_compiled_before_the_first_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[set[torch.device]] = []
    monkeypatch.setattr(doors, "prepare", prepared.append)
    gaussiank.compress(DDP(nn.Linear(3, 1)), 0.1)
    gaussiank.compress(DDP(nn.Linear(3, 1)), compressor="dense")  # which runs none
    assert prepared == [{torch.device("cpu")}]
