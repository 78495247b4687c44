"""Interrupted after any step and resumed, a training ends with the very bits of one that was not."""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from gaussiank_lab.checkpoint import CheckpointPlan, Manifest, Saver, find_resume, load_worker
from gaussiank_lab.data import Data
from gaussiank_lab.models import MODELS
from gaussiank_lab.train.config import TrainConfig, default
from gaussiank_lab.train.training import Training

STEPS = 7


@pytest.fixture(autouse=True)
def _world_of_one(tmp_path: Path) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    torch.set_num_threads(threads)


def config_of(method: str = "topk", **settings: Any) -> TrainConfig:
    fields = {
        **default(settings.get("model", "fnn3")),
        "workers": 1,
        "methods": (method,),
        "density": 0.01,
        "batch_size": 8,
        "steps": STEPS,
        **settings,
    }
    return TrainConfig(**fields)


def saver(folder: Path, config: TrainConfig, **plan: Any) -> Saver:
    def describe(method: str, step: int) -> Manifest:
        written = CheckpointPlan(folder, **{"every": 1, "keep": 99, **plan})
        return Manifest(
            form=written.form,
            world_size=1,
            method=method,
            step=step,
            config=config.as_record(),
            parameters={},
            data_digest="",
            run_dir="..",
            records_bytes=0,
            records_crc32=0,
            every=1,
            keep=99,
            versions={},
        )

    return Saver(CheckpointPlan(folder, **{"every": 1, "keep": 99, **plan}), describe)


def plain_numbers(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return records without what is measured anew, and the norm of a round that was begun before the checkpoint."""
    unsaved = {"seconds", "difference_norm"}
    return [
        {key: value for key, value in record.items() if key not in unsaved and not key.endswith("_s")}
        for record in records
        if record["kind"] != "checkpoint"
    ]


def images(count: int) -> Data:
    """Return the usual images, with a small test set."""
    import dataclasses

    data = config_of().load_data()
    test = dataclasses.replace(data.test, images=data.test.images[:count], labels=data.test.labels[:count])  # type: ignore[attr-defined]  # an ImageSet
    return dataclasses.replace(data, test=test)


def straight_and_resumed(
    folder: Path, config: TrainConfig, data: Data, after: int, **plan: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    method = config.methods[0]
    straight: list[dict[str, Any]] = []
    whole = Training(config, method, data, straight.append, saver(folder / "checkpoints", config, **plan))
    whole.run()
    torch.rand(17)  # the resumed run must not owe its numbers to this process
    resumed: list[dict[str, Any]] = []
    again = Training(config, method, data, resumed.append)
    name = f"00-{method.partition(':')[0]}-step-{after:08d}"
    again.restore(load_worker(find_resume(folder / "checkpoints" / name)))
    assert again.done == after
    again.run()
    return straight, resumed


@pytest.mark.parametrize("after", [1, 4, STEPS])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"method": "dense", "optimizer": "adamw", "lr": 0.001},
        {"method": "gaussiank", "momentum_correction": True, "warmup": "dgc", "warmup_steps": 4, "clip_norm": 1.0},
        {"method": "randomk", "accumulate": 2, "clip_mean": 0.1, "lr_schedule": "cosine"},
        {"precondition": True, "precision": "bf16", "ema": 0.9, "clip_grad": 0.5, "accumulate": 2, "augment": True},
        {"precision": "fp16", "ema": 0.9, "scope": "layer", "warmup": "dense", "warmup_steps": 3},
        {"method": "local:fragments=2:sync_delay=1", "sync_every": 3, "optimizer": "adamw", "precision": "fp16"},
    ],
    ids=[
        "topk",
        "dense-adamw",
        "gaussiank-correction",
        "randomk-accumulate",
        "rows-bf16-ema-clip",
        "fp16-ema-layer",
        "local",
    ],
)
def test_every_setting_resumes_bit_for_bit(tmp_path: Path, settings: dict[str, Any], after: int) -> None:
    config = config_of(eval_steps=3, **settings)
    straight, resumed = straight_and_resumed(tmp_path, config, images(64), after)
    assert straight[-1]["digest"] == resumed[-1]["digest"]
    later = [record for record in plain_numbers(straight) if record["kind"] == "method" or record["step"] > after]
    order = itemgetter("kind")  # a kind is written when there is time
    assert sorted(plain_numbers(resumed), key=order) == sorted(later, key=order)


def test_several_buckets_resume_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DDP's first backward has other buckets than all that follow; k is counted on each."""

    def build(outputs: int) -> torch.nn.Module:
        layers = [torch.nn.Flatten(), torch.nn.Linear(784, 700), torch.nn.BatchNorm1d(700), torch.nn.Dropout(0.3)]
        return torch.nn.Sequential(*layers, torch.nn.Linear(700, 600), torch.nn.ReLU(), torch.nn.Linear(600, outputs))

    monkeypatch.setitem(MODELS, "fnn3", type(MODELS["fnn3"])(**{**vars(MODELS["fnn3"]), "build": build}))
    straight, resumed = straight_and_resumed(tmp_path, config_of(density=0.001), images(64), 3)
    assert straight[-1]["digest"] == resumed[-1]["digest"]


def test_distributed_form_resumes_bit_for_bit(tmp_path: Path) -> None:
    config = config_of("gaussiank", momentum_correction=True)
    straight, resumed = straight_and_resumed(tmp_path, config, images(64), 4, form="dcp")
    assert straight[-1]["digest"] == resumed[-1]["digest"]
    names = {path.name for path in (tmp_path / "checkpoints" / "00-gaussiank-step-00000004").iterdir()}
    assert names == {"manifest.json", ".metadata", "__0_0.distcp"}
