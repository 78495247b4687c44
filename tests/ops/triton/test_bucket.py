"""One bucket through the reducer on the simulated CUDA device, by the kernels: bits, findings, launches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.distributed.test_simulated_cuda import train
from tests.simulated_cuda import SimulatedCuda

from gaussiank import ops


@pytest.fixture
def one_worker(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_bucket_is_safe_and_takes_eight_launches(one_worker: None, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []
    run = SimulatedCuda._run

    def noted(device: SimulatedCuda, name: str, *given: object, **more: object) -> None:
        launched.append(name)
        run(device, name, *given, **more)

    monkeypatch.setattr(SimulatedCuda, "_run", noted)
    case = ("allgather", "topk", "chunks+bf16", "bucket", False)
    with torch.no_grad():
        with ops.use_backend("reference"):
            plain = train(0, case, None)
        with (device := SimulatedCuda()).installed():
            simulated = train(0, case, device)
    assert all(torch.equal(one, two) for one, two in zip(plain, simulated, strict=True))
    assert device.findings == []
    bucket = (
        "sweep pick refine count emit _allgather_base_ decode_mean copy_"  # with the message and the verdict's copy
    )
    assert launched[:24] == bucket.split() * 3
