from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.each import each

from gaussiank import Constant, DenseStart, MomentumCorrection, Warmup, parse_compressor
from gaussiank_lab.train.config import TrainConfig


@each(
    ("settings", "sentence"),
    [
        (
            {"model": "lenet6"},
            r"model must be one of fnn3, lenet5, .* or torchvision:NAME, got 'lenet6'\. Correct it\.",
        ),
        ({"dataset": "cifar"}, r"dataset must be one of fashion-mnist-subset, .*, got 'cifar'\."),
        ({"dataset": "ptb"}, r"dataset must be of images for lenet5, got 'ptb'\. Take fashion-mnist-subset, .*cifar10"),
        (
            {"model": "transformer"},
            r"dataset must be of language for transformer, got 'fashion-mnist-subset'\. Take stdl",
        ),
        (
            {"model": "transformer", "dataset": "stdlib", "augment": True},
            r"augment must be off for a model of language, got on for transformer\. Leave it out\.",
        ),
        ({"optimizer": "adam"}, r"optimizer must be one of sgd, adamw, got 'adam'\."),
        ({"lr_schedule": "linear"}, r"lr_schedule must be one of constant, step, cosine, got 'linear'\."),
        ({"lr_warmup_steps": -1}, r"lr_warmup_steps must be at least 0, got -1\."),
        ({"eval_steps": 0}, r"eval_steps must be at least 1, got 0\."),
        ({"context": 0}, r"context must be at least 1, got 0\."),
        ({"clip_grad": 0.0}, r"clip_grad must be above 0, got 0\.0\. Leave it out to clip nothing\."),
        (
            {"optimizer": "adamw", "momentum_correction": True},
            r"optimizer must be sgd with momentum_correction, got adamw\.",
        ),
        (
            {"precondition": True, "momentum_correction": True},
            r"momentum_correction must be off with precondition, got both on\.",
        ),
        ({"methods": ()}, r"methods must name at least one, got none\."),
        ({"sync_every": 5}, r"methods must have local or diloco with sync_every, got dense, topk"),
        ({"methods": ("local",), "ema": 0.9}, r"ema must be left out with local, got 0.9\."),
        ({"methods": ("local:density=2",)}, r"density must be in \(0, 1\], got 2\.0\."),
        ({"methods": ("diloco:k=2",)}, r"settings of diloco must be among values=..., lr=..., momentum=..."),
        ({"methods": ("powersgd:rank=0",)}, r"rank must be at least 1, got 0\."),
        ({"methods": ("powersgd",), "precision": "fp16"}, r"precision must be fp32 or bf16 with powersgd, got fp16"),
        ({"methods": ("topk", "topk")}, r"methods must differ, got topk, topk\. Name each once\."),
        ({"methods": ("topkk",)}, r"compressor must be one of dense, topk, .* got 'topkk'\."),
        ({"density": 0.0}, r"density must be in \(0, 1\], got 0\.0\."),
        ({"density": 1.01}, r"density must be in \(0, 1\], got 1\.01\."),
        ({"scope": "world"}, r"scope must be one of bucket, layer, model, got 'world'\."),
        ({"warmup": "slow"}, r"warmup must be one of none, dense, dgc, published, got 'slow'\."),
        ({"workers": 0}, r"workers must be at least 1, got 0\. Raise it\."),
        ({"batch_size": 0}, r"batch_size must be at least 1, got 0\."),
        ({"steps": 0}, r"steps must be at least 1, got 0\."),
        ({"lr": 0.0}, r"lr must be above 0, got 0\.0\."),
        ({"lr": float("nan")}, r"lr must be a finite number, got nan\."),
        ({"weight_decay": -1.0}, r"weight_decay must not be negative, got -1\.0\."),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1\.0\."),
        ({"clip_norm": 1.0}, r"clip_norm must come with momentum_correction, got 1\.0 alone\."),
        ({"max_bytes": 10}, r"max_bytes must be at least \d+, a header and one entry, got 10\."),
        ({"wire": "rice"}, r"wire must be index\+values or index\+values\+rounding, got 'rice'\."),
        ({"collective": "ring"}, r"collective must be one of dense, allgather, .* got 'ring'\."),
        ({"collective": "tree"}, r"collective must send nothing back .* got Tree\(\) for RandomK\(.*feedback=False"),
        ({"device": "tpu"}, r"device must be cpu or cuda, got 'tpu'\."),
    ],
)
def test_settings_out_of_range_get_one_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TrainConfig(**settings)


def test_a_data_dir_that_is_none_is_named(tmp_path: Path) -> None:
    config = TrainConfig(data_dir=str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"data_dir must exist, got .*nowhere\. Give a folder of data sets\."):
        config.load_data()


def test_warmup_becomes_a_schedule() -> None:
    assert TrainConfig().schedule(78) == Constant(0.001)
    assert TrainConfig(warmup="dense").schedule(78) == DenseStart(0.001, 78)
    assert TrainConfig(warmup="dense", warmup_steps=5).schedule(78) == DenseStart(0.001, 5)
    assert TrainConfig(warmup="dgc").schedule(78) == Warmup((0.25, 0.0625, 0.015625, 0.004, 0.001), 78)
    assert TrainConfig(warmup="dgc", warmup_steps=40).schedule(78) == Warmup((0.25, 0.0625, 0.015625, 0.004, 0.001), 10)
    assert TrainConfig(warmup="published", density=0.01).schedule(78) == Warmup((0.015625, 0.01), 78)


def test_correction_goes_to_methods_that_delay() -> None:
    config = TrainConfig(momentum_correction=True, momentum=0.8, clip_norm=2.0)
    assert config.correction(parse_compressor("topk")) == MomentumCorrection(0.8, clip_norm=2.0)
    assert config.correction(parse_compressor("dense")) is None
    assert config.correction(parse_compressor("randomk:feedback=false")) is None
    assert TrainConfig().correction(parse_compressor("topk")) is None
