from __future__ import annotations

import pytest
from tests.each import each

from gaussiank_lab.models import MODELS
from gaussiank_lab.train.config import TrainConfig, default, paper, resolve

# the paper's table of settings
PAPER = {
    "fnn3": ("mnist", 128, 0.01, None),
    "lenet5": ("mnist", 128, 0.01, None),
    "resnet20": ("cifar10", 32, 0.1, None),
    "vgg16": ("cifar10", 128, 0.1, None),
    "lstm-ptb": ("ptb", 20, 22.0, 0.25),
    "lstm-an4": ("an4", 4, 0.0002, 400.0),
    "alexnet": ("imagefolder", 128, 0.01, None),
    "vgg16-imagenet": ("imagefolder", 128, 0.01, None),
    "resnet50": ("imagefolder", 128, 0.01, None),
    "inception-v4": ("imagefolder", 128, 0.01, None),
}


@each("model", PAPER)
def test_the_papers_settings(model: str) -> None:
    config = TrainConfig(**paper(model))
    assert (config.dataset, config.batch_size, config.lr, config.clip_grad) == PAPER[model]
    assert (config.model, config.density, config.scope, config.optimizer) == (model, 0.001, "model", "sgd")
    assert config.momentum == 0.9


def test_the_paper_knows_its_own_models_only() -> None:
    with pytest.raises(
        ValueError, match=r"recipe must be default for transformer, got paper, which does not train it\."
    ):
        paper("transformer")


@each("model", MODELS)
def test_ours_needs_no_data_that_a_machine_may_lack(model: str) -> None:
    config = TrainConfig(**default(model))
    assert config.model == model
    assert len(config.load_data().train) >= config.workers * config.batch_size


def test_ours_for_lenet5_is_what_a_config_says_without_one() -> None:
    assert TrainConfig(**default("lenet5")) == TrainConfig()


def test_what_is_given_wins() -> None:
    fields = resolve("paper", None, {"model": "resnet20", "lr": 0.05, "scope": "bucket"})
    assert (fields["lr"], fields["scope"], fields["batch_size"]) == (0.05, "bucket", 32)
    fields = resolve(None, {"model": "fnn3", "lr": 0.5, "seed": 3}, {"lr": 0.05})
    assert fields == {"model": "fnn3", "lr": 0.05, "seed": 3}
    assert resolve(None, None, {}) == default("lenet5")


def test_epochs_take_the_place_of_steps_that_were_not_given() -> None:
    assert resolve(None, {"steps": 600}, {"epochs": 2}) == {"steps": None, "epochs": 2}
    assert resolve(None, {"steps": 600}, {"epochs": 2, "steps": 5}) == {"steps": 5, "epochs": 2}


def test_a_zero_takes_away_what_may_be_absent() -> None:
    fields = resolve("paper", None, {"model": "lstm-ptb", "clip_grad": 0.0, "eval_steps": 0})
    assert (fields["clip_grad"], fields["eval_steps"]) == (None, None)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        TrainConfig(**resolve(None, None, {"steps": 0}))


def test_recipe_and_file_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"recipe must be left out with config, got 'paper'\. Leave one of them out\."):
        resolve("paper", {"lr": 0.1}, {})
    with pytest.raises(ValueError, match=r"recipe must be one of default, paper, got 'ours'\. Choose one of them\."):
        resolve("ours", None, {})
