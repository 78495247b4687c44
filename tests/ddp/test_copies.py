"""A compressed model is copied and pickled as a plain one is; the copy has no compression, says so, and can get one."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import gaussiank
from gaussiank.ddp import DDPCompression


def saved(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def grads(model: nn.Module) -> Tensor:
    model.zero_grad()
    model(torch.arange(60.0).view(2, 30)).square().mean().backward()
    return torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])


def trained() -> tuple[DistributedDataParallel, gaussiank.Compression]:
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(30, 10))
    compression = gaussiank.compress(model, 0.1)
    grads(model)
    return model, compression


def test_a_copy_is_a_plain_model_says_so_and_can_be_compressed() -> None:
    model, compression = trained()
    plain = grads(DistributedDataParallel(copy.deepcopy(model.module)))
    for copied in (
        copy.deepcopy(model),
        copy.deepcopy(copy.deepcopy(model)),
        saved(model),
        AveragedModel(model).module,
    ):
        with pytest.warns(UserWarning, match=r"^a copy of a compressed model is trained, and averages dense") as said:
            assert torch.equal(grads(copied), plain)
        assert torch.equal(grads(copied), plain)
        assert len(said) == 1
        again = gaussiank.compress(copied, 0.1)
        assert grads(copied).count_nonzero() == again.metrics.kept == 31
    fresh = copy.deepcopy(model)
    gaussiank.compress(fresh, 0.1)
    assert grads(fresh).count_nonzero() == 31  # without a warning
    before = compression.step
    assert grads(model).count_nonzero() == 31
    assert compression.step == before + 1


def test_a_compression_tells_its_settings_size_and_step_and_so_does_its_copy() -> None:
    model, compression = trained()
    settings = (
        "density=Constant(density=0.1), compressor=TopK(), scope=bucket, on_nonfinite=propagate, "
        "collective=AllGather(slack=1.25, spread=1.02, ask=False), wire=rice+bf16-rice, "
        "parameters=2, numel=310, step=1"
    )
    assert repr(compression) == f"Compression({settings})"
    for copied in (copy.deepcopy(compression), pickle.loads(pickle.dumps(compression)), copy.copy(compression)):
        assert repr(copied) == f"CopiedCompression({settings}, without exchange)"
    del model
    assert len(pickle.dumps(compression)) < 3000


def test_a_model_that_was_pickled_before_finds_its_hook() -> None:
    assert pickle.loads(b"cgaussiank.ddp.registration\nhook\n.") is DDPCompression.reduce
