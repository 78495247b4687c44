from __future__ import annotations

import dataclasses
import re

import pytest
from tests.each import each

from gaussiank import compressors
from gaussiank.compressors import (
    COMPRESSORS,
    DGC,
    Compressor,
    GaussianK,
    RandomK,
    TopK,
    TrimmedTopK,
    compressor_names,
    parse_compressor,
)

METHODS = ", ".join(COMPRESSORS)


def test_table_names_each_class_by_its_file() -> None:
    for name, row in COMPRESSORS.items():
        assert row.__name__.lower() == name
        assert row.__module__ == f"gaussiank.compressors.{name}"
    assert compressor_names() == tuple(COMPRESSORS)


def test_an_older_name_of_the_context_is_told_of() -> None:
    with pytest.warns(DeprecationWarning, match=r"^compressors.Turn is called SelectContext\. Use that name\."):
        assert compressors.Turn is compressors.SelectContext


@each("name", COMPRESSORS)
def test_a_name_alone_means_the_defaults(name: str) -> None:
    assert parse_compressor(name) == COMPRESSORS[name]()


@each(
    ("spec", "expected"),
    [
        (" topk ", TopK()),
        ("gaussiank:mode=published", GaussianK("published")),
        ("gaussiank:mode=paper", GaussianK("paper")),
        ("gaussiank:mode=bracketed", GaussianK()),
        ("randomk:shared=true", RandomK(shared=True)),
        ("randomk:shared=True:feedback=FALSE:seed=-3", RandomK(shared=True, feedback=False, seed=-3)),
        ("randomk:feedback=false", RandomK(feedback=False)),
        ("dgc:sample=0.05", DGC(0.05)),
        ("dgc:sample=1", DGC(1.0)),
        ("trimmedtopk:step=1e-1", TrimmedTopK(0.1)),
    ],
)
def test_settings_follow_the_name(spec: str, expected: Compressor) -> None:
    assert parse_compressor(spec) == expected


@each("name", COMPRESSORS)
def test_every_setting_can_be_written_as_text(name: str) -> None:
    compressor = COMPRESSORS[name]()
    fields = dataclasses.asdict(compressor)  # type: ignore[call-overload]
    assert parse_compressor(":".join([name, *(f"{field}={value}" for field, value in fields.items())])) == compressor


@each(
    ("spec", "message"),
    [
        ("topkk", f"compressor must be one of {METHODS}, got 'topkk'. Correct it."),
        ("TopK", f"compressor must be one of {METHODS}, got 'TopK'. Correct it."),
        ("", f"compressor must be one of {METHODS}, got ''. Correct it."),
        ("capped", f"compressor must be one of {METHODS}, got 'capped'. Correct it."),
        (":seed=1", f"compressor must be one of {METHODS}, got ''. Correct it."),
        ("topk:", "settings of topk must be among none, got ''. Correct 'topk:'."),
        ("topk:k=3", "settings of topk must be among none, got 'k=3'. Correct 'topk:k=3'."),
        ("dgc:sample", "settings of dgc must be among sample=..., got 'sample'. Correct 'dgc:sample'."),
        ("dgc:0.05", "settings of dgc must be among sample=..., got '0.05'. Correct 'dgc:0.05'."),
        (
            "randomk:share=true",
            "settings of randomk must be among shared=..., feedback=..., seed=..., got 'share=true'. "
            "Correct 'randomk:share=true'.",
        ),
        ("randomk:shared=yes", "shared of randomk must be a bool, got 'yes'. Correct 'randomk:shared=yes'."),
        ("randomk:shared=", "shared of randomk must be a bool, got ''. Correct 'randomk:shared='."),
        ("randomk:seed=1.5", "seed of randomk must be a int, got '1.5'. Correct 'randomk:seed=1.5'."),
        ("dgc:sample=few", "sample of dgc must be a float, got 'few'. Correct 'dgc:sample=few'."),
        ("dgc:sample=2", "sample must be in (0, 1], got 2.0. DGC samples 0.01."),
        ("dgc:sample=nan", "sample must be in (0, 1], got nan. DGC samples 0.01."),
        ("trimmedtopk:step=1", "step must be in (0, 1), got 1.0. RedSync uses 0.2."),
        ("gaussiank:mode=fast", "mode must be one of bracketed, published, paper, got 'fast'. Choose one of them."),
        ("gaussiank:mode=", "mode must be one of bracketed, published, paper, got ''. Choose one of them."),
    ],
)
def test_refuses_what_it_does_not_know(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        parse_compressor(spec)


def test_refuses_a_setting_given_twice() -> None:
    with pytest.raises(ValueError, match="seed of randomk must"):
        parse_compressor("randomk:seed=1:seed=2")
