"""Buckets through the reducer on the simulated CUDA device, by the kernels: bits, findings, launches."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.distributed.test_simulated_cuda import _repeated
from tests.ops.same import require_same
from tests.ops.triton.conftest import ALL
from tests.simulated_cuda import CUDA, SimulatedCuda
from torch import Tensor

from gaussiank import ops
from gaussiank.codec import Wire
from gaussiank.comm import Communicator
from gaussiank.compressors import parse_compressor
from gaussiank.layout import Layout
from gaussiank.reducer import GradientReducer, Settings
from gaussiank.schedule import Constant

LAYOUT = Layout(("a", "b"), (3000, 1000))
STEPS = 2
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WORKERS = (2, 8, 64)
WIRES = ("chunks+bf16", "chunks12+2bit")
CASES = [*itertools.product(WORKERS, DTYPES, WIRES)]
if not ALL:
    CASES = [(8, torch.float32, "chunks+bf16"), *zip(WORKERS, DTYPES, WIRES[1:] * 3, strict=True)]


@pytest.fixture
def one_worker(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    gc.freeze()  # so that a collection looks at little
    yield
    gc.unfreeze()
    dist.destroy_process_group()


def train(workers: int, dtype: torch.dtype, wire: str, device: SimulatedCuda | None) -> list[Tensor]:
    """Means of every step and the residuals at the end; one worker's row arrives as often as if so many had sent it."""
    settings = Settings(Constant(0.01), parse_compressor("topk"), wire=Wire.parse(wire))
    plain, ends = Communicator.all_gather, []
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        stack.enter_context(torch.no_grad())
        stack.enter_context(device.installed() if device else ops.use_backend("reference"))
        patch.setattr(Communicator, "all_gather", lambda *given: _repeated(plain(*given), workers))
        reducer = GradientReducer({"a": 3000, "b": 1000}, settings, device=CUDA if device else None)
        for step in range(STEPS):
            grad = torch.randn(LAYOUT.numel, generator=torch.Generator().manual_seed(step)).to(dtype)
            grad = device.tensor(grad) if device else grad
            reducer.begin()
            done = reducer.reduce_sparse(LAYOUT, [grad])
            reducer.seal()
            gc.collect()
            done.wait()
            if device:
                device.end_step()
            ends.append(getattr(grad, "on_host", grad))
        reducer.settle()
        residuals = reducer.feedback.residuals(LAYOUT)
        return [*ends, getattr(residuals, "on_host", residuals)]


def test_a_bucket_is_safe_and_takes_eight_launches(one_worker: None, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []
    run = SimulatedCuda._run

    def noted(device: SimulatedCuda, name: str, *given: object, **more: object) -> None:
        launched.append(name)
        run(device, name, *given, **more)

    monkeypatch.setattr(SimulatedCuda, "_run", noted)
    # one kernel of torch, which fills in zeros, six of ours, and NCCL's; then a copy of one byte to the host
    eight, copy = ["zeros", "sweep", "pick", "refine", "count", "emit", "_allgather_base_", "decode_mean"], "copy_"
    for case in CASES:
        launched.clear()
        expected, device = train(*case, None), SimulatedCuda()
        for got, one in zip(train(*case, device), expected, strict=True):
            require_same(got, one, *case)
        assert device.findings == []
        begin = launched.index("sweep") - 1  # the first step makes the residuals
        assert launched[begin:][: 9 * STEPS] == [*eight, copy] * STEPS, case
