"""The settings of recipes: all six models, and what stands in for them."""

from __future__ import annotations

import pytest

from gaussiank_lab.reproduce.settings import PAPER_MODELS, SETTINGS, STAND_INS, config, models, standins
from gaussiank_lab.reproduce.training import models_of, study_jobs


@pytest.mark.parametrize("model", PAPER_MODELS)
def test_every_model_of_the_paper_has_settings_at_every_scale(model: str) -> None:
    small, full = (config(model, scale, ("topk",)) for scale in ("small", "full"))
    assert (full.model, full.workers, full.density, full.scope) == (model, 16, 0.001, "model")
    assert small.steps == SETTINGS[model].small["steps"]
    assert small.device == "cpu"
    assert config(model, "tiny", ("topk",)).steps == 6
    small.load_data()  # of every machine, and it fits the model


def test_gradients_of_all_six_models_are_recorded() -> None:
    assert [job.config.model for job in study_jobs("full")] == list(PAPER_MODELS)
    small = ["fnn3", "lenet5", "resnet20", "vgg16", "lstm-small", "lstm-an4"]
    assert [job.config.model for job in study_jobs("small")] == small


def test_stand_ins_are_named() -> None:
    text = standins("small", models_of(study_jobs("small")))
    assert all(f"{name}: {why}" in text for name, why in STAND_INS.items())
    assert "fnn3 400, lenet5 400, resnet20 100, vgg16 20, lstm-ptb 200, lstm-an4 20" in text
    assert "not trained" not in text
    assert standins("small", ["fnn3", "lenet5", "resnet20"]).endswith("not trained here: vgg16, lstm-ptb, lstm-an4.")
    assert standins("full", PAPER_MODELS) == ""
    assert models("tiny", PAPER_MODELS) == ("fnn3",)
