from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.each import each

from gaussiank_lab.train.config import TrainConfig, read_config, write_config


def test_a_config_is_given_back_as_it_was(tmp_path: Path) -> None:
    config = TrainConfig(
        model="transformer", dataset="stdlib", lr=0.125, steps=7, methods=("dense", "dgc"), augment=False
    )
    write_config(tmp_path / "run", config)
    assert TrainConfig(**read_config(tmp_path / "run")) == config
    assert TrainConfig(**read_config(tmp_path / "run" / "config.json")) == config


def test_a_part_of_a_config_is_enough(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('{"lr": 1, "clip_grad": 2, "methods": ["topk"]}')
    fields = read_config(tmp_path / "mine.json")
    assert fields == {"lr": 1.0, "clip_grad": 2.0, "methods": ("topk",)}
    assert isinstance(fields["lr"], float)
    assert isinstance(fields["clip_grad"], float)


@each(
    ("fields", "sentence"),
    [
        ({"learning_rate": 0.1}, "must be among model, dataset, .*, got 'learning_rate'. Correct or remove it."),
        ({"lr": "fast"}, "lr of .* must be a number, got 'fast'. Correct it."),
        ({"lr": True}, "lr of .* must be a number, got True."),
        ({"steps": 1.5}, "steps of .* must be a whole number or null, got 1.5."),
        ({"steps": True}, "steps of .* must be a whole number or null, got True."),
        ({"augment": 1}, "augment of .* must be a true or false, got 1."),
        ({"warmup": 3}, "warmup of .* must be a text, got 3."),
        ({"model": None}, "model of .* must be a text, got None."),
        ({"methods": "topk"}, "methods of .* must be a list of texts, got 'topk'."),
        ({"methods": ["topk", 3]}, r"methods of .* must be a list of texts, got \['topk', 3\]."),
        (["lr"], "config must hold a JSON object, got list in"),
    ],
)
def test_a_field_that_is_wrong_is_named(tmp_path: Path, fields: object, sentence: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=sentence) as caught:
        read_config(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"config must be a file, got {tmp_path / 'config.json'}, which")
    ):
        read_config(tmp_path)
    (tmp_path / "cut.json").write_text('{"lr": ')
    with pytest.raises(ValueError, match=re.escape(f"config must be a JSON file, got {tmp_path / 'cut.json'} (")):
        read_config(tmp_path / "cut.json")
