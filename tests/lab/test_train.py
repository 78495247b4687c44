"""Training in one process: a world of one worker is the same code."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.each import each
from torch import nn

from gaussiank_lab.data import Data, ImageSet, TokenSet
from gaussiank_lab.models import MODELS
from gaussiank_lab.tasks import LanguageModelling
from gaussiank_lab.train.config import TrainConfig, default
from gaussiank_lab.train.training import Training

Records = list[dict[str, Any]]


@pytest.fixture(autouse=True)
def _world_of_one(tmp_path: Path) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    torch.set_num_threads(threads)


def train(method: str = "topk", data: Data | None = None, **settings: Any) -> tuple[Records, Training]:
    fields = {
        **default(settings.get("model", "lenet5")),
        "workers": 1,
        "methods": (method,),
        "density": 0.01,
        **settings,
    }
    config = TrainConfig(**fields)
    records: Records = []
    training = Training(config, method, data or config.load_data(), records.append)
    training.run()
    return records, training


def of_kind(records: Records, kind: str) -> Records:
    return [record for record in records if record["kind"] == kind]


def counting(n: int = 2000, context: int = 16) -> Data:
    tokens = (torch.arange(n) * 7 % 32).to(torch.uint8)
    return Data(LanguageModelling("byte"), TokenSet(tokens, context), TokenSet(tokens[:99], context), 32, "counting")


def few_images(model: str, n: int) -> Data:
    """Return the usual images, with a test set of ``n``."""
    data = TrainConfig(model=model).load_data()
    assert isinstance(data.test, ImageSet)
    test = dataclasses.replace(data.test, images=data.test.images[:n], labels=data.test.labels[:n])
    return Data(data.task, data.train, test, data.outputs, f"{n} to test")


@each("model", ["fnn3", "lenet5", "resnet20"])
def test_small_image_models_train(model: str) -> None:
    records, _ = train(model=model, steps=3, batch_size=8, data=few_images(model, 64))
    closing = of_kind(records, "method")[0]
    assert 0 <= closing["accuracy"] <= 1
    assert math.isfinite(closing["loss"])
    assert closing["kept_over_k"] == 1.0


def test_vgg16_takes_a_step() -> None:
    records, training = train(model="vgg16", steps=1, batch_size=2, data=few_images("vgg16", 4))
    assert sum(parameter.numel() for parameter in training.model.parameters()) == 14_728_266
    assert of_kind(records, "method")[0]["digest"]


@each(("model", "lr"), [("transformer", 0.003), ("lstm-small", 0.5)])
def test_language_models_train_and_are_judged_in_nats(model: str, lr: float) -> None:
    records, _ = train(model=model, data=counting(), steps=30, eval_steps=15, batch_size=4, context=16, lr=lr)
    first, last = of_kind(records, "eval")
    assert [first["step"], last["step"]] == [15, 30]
    assert last["loss"] < first["loss"] < math.log(32)
    assert last["perplexity"] == pytest.approx(math.exp(last["loss"]))
    assert of_kind(records, "method")[0]["loss"] == last["loss"]


def test_speech_model_trains_and_is_judged_by_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    from gaussiank_lab.models import text

    def small(characters: int) -> nn.Module:
        return text.SpeechModel(characters, width=16, layers=2)

    spec = MODELS["lstm-an4"]
    monkeypatch.setitem(MODELS, "lstm-an4", type(spec)(**{**vars(spec), "build": small}))
    records, _ = train(model="lstm-an4", steps=2, lr=0.0002, clip_grad=400.0)
    closing = of_kind(records, "method")[0]
    assert math.isfinite(closing["loss"])
    assert 0.5 <= closing["error_rate"] <= 3


def test_evaluation_comes_after_each_epoch_unless_said() -> None:
    records, _ = train(model="fnn3", batch_size=2500, epochs=2)
    assert [(record["step"], record["epoch"]) for record in of_kind(records, "eval")] == [(4, 1.0), (8, 2.0)]
    records, _ = train(model="fnn3", batch_size=2500, steps=5, eval_steps=2)
    assert [record["step"] for record in of_kind(records, "eval")] == [2, 4, 5]


def test_learning_rate_follows_its_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self, *args: (rates.append(self.param_groups[0]["lr"]), step(self, *args))[1]
    )
    train(model="fnn3", steps=8, batch_size=8, lr=0.1, lr_schedule="step", lr_warmup_steps=1)
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_adamw_is_taken_when_asked_for() -> None:
    sgd, _ = train("dense", model="fnn3", steps=3, batch_size=8)
    adam, training = train("dense", model="fnn3", steps=3, batch_size=8, optimizer="adamw", lr=0.001, momentum=0.8)
    assert isinstance(training._stepper._optimizer, torch.optim.AdamW)
    assert training._stepper._optimizer.param_groups[0]["betas"] == (0.8, 0.999)
    assert of_kind(sgd, "method")[0]["digest"] != of_kind(adam, "method")[0]["digest"]


def test_powersgd_of_torch_trains_and_says_what_it_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    from gaussiank_lab.train import powersgd

    monkeypatch.setattr(powersgd, "all_reduce_bytes", lambda tensor, workers: tensor.numel())
    records, _ = train("powersgd:rank=2", model="fnn3", steps=6, batch_size=8, clip_grad=1.0)
    steps = of_kind(records, "step")
    sent = [step["sent_bytes"] for step in steps]
    assert sent[:2] == [199_210, 199_210]  # it begins dense
    assert 0 < max(sent[2:]) < 0.05 * sent[0]
    assert all(step["kept"] == step["k"] == 199_210 and math.isfinite(step["loss"]) for step in steps)


def test_augmentation_changes_the_training_and_nothing_else() -> None:
    plain, changed, again = (
        train("dense", model="fnn3", steps=3, batch_size=8, augment=augment)[0] for augment in (False, True, True)
    )
    digests = [of_kind(records, "method")[0]["digest"] for records in (plain, changed, again)]
    assert digests[0] != digests[1] == digests[2]


def test_clipping_bounds_what_is_exchanged() -> None:
    _, training = train("dense", model="fnn3", steps=1, batch_size=8, clip_grad=0.001, momentum=0.0)
    grads = torch.cat(
        [parameter.grad.flatten() for parameter in training.model.parameters() if parameter.grad is not None]
    )
    assert float(grads.norm()) == pytest.approx(0.001, rel=1e-3)


def test_clipping_that_never_bites_changes_no_bit() -> None:
    # rows of one size: what an outgrown row leaves out depends on the order of parameters, which clipping changes
    settings = {"model": "fnn3", "steps": 4, "batch_size": 8, "wire": "eliasfano+bf16"}
    plain, _ = train("topk", **settings)
    clipped, _ = train("topk", **settings, clip_grad=1e9)
    assert of_kind(plain, "method")[0]["digest"] == of_kind(clipped, "method")[0]["digest"]
