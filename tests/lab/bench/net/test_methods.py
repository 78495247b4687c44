"""Methods and workloads from text."""

from __future__ import annotations

import pytest
from tests.each import each

from gaussiank_lab.bench.net.methods import parse_method
from gaussiank_lab.bench.net.training import parse_workload


@each(
    ("text", "family", "collective", "wire", "measures_link"),
    [
        ("ddp", "ddp", "allgather", None, False),
        ("ddp-powersgd", "ddp", "allgather", None, False),
        ("paper-gaussiank", "paper", "allgather", None, False),
        ("topk", "ours", "allgather", None, False),
        ("dgc:sample=0.02/split:slack=1.5/raw+fp32", "ours", "split:slack=1.5", "raw+fp32", False),
        ("topk/auto", "ours", "auto", None, True),
        ("adamrows:collective=auto", "ours", "auto", None, True),
        ("diloco:values=8bit", "ours", "allgather", None, False),
    ],
)
def test_methods_are_read(text: str, family: str, collective: str, wire: str | None, measures_link: bool) -> None:
    method = parse_method(text)
    assert (method.family, method.collective, method.wire) == (family, collective, wire)
    assert method.measures_link == measures_link


@each(
    ("text", "sentence"),
    [
        ("best", "methods must be ddp, ddp-fp16, .*: compressor must be one of"),
        ("topk/best", "collective must be one of"),
        ("topk/split/best", "wire must"),
        ("adamrows:k=2", "settings of adamrows must be among density=..., scope=..., wire=..."),
        ("adamrows:density=2", "density must be in"),
        ("local:density=2", "density must be in"),
    ],
)
def test_other_methods_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_method(text)


def test_workloads_are_read() -> None:
    assert parse_workload("lenet5").like == "lenet5"
    assert parse_workload("vector:2e4").numel == 20_000


@each(
    ("text", "sentence"),
    [
        ("lenet6", "models must be among fnn3, .*, alexnet-small, vector:N, got 'lenet6'"),
        ("vector:many", "models must give a vector 1000 to"),
        ("vector:inf", "models must give a vector 1000 to"),
        ("vector:10", "models must give a vector 1000 to"),
    ],
)
def test_other_workloads_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_workload(text)
