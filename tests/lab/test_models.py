from __future__ import annotations

import sys
import types
from collections.abc import Iterator

import pytest
import torch
from tests.each import each
from torch import nn

from gaussiank_lab.data import DATASETS, ImageShape, Wanted, fashion_mnist_subset
from gaussiank_lab.models import MODELS, find_model
from gaussiank_lab.models.text import SpeechModel, Transformer
from gaussiank_lab.tasks import LanguageModelling, SpeechRecognition

NUMEL = {
    "fnn3": 199_210,
    "lenet5": 61_706,
    "resnet20": 269_722,
    "vgg16": 14_728_266,
    "lstm-ptb": 66_034_000,
    "lstm-an4": 27_569_568,
    "alexnet": 61_100_840,
    "vgg16-imagenet": 138_357_544,
    "resnet50": 25_557_032,
    "inception-v4": 42_679_816,
}  # of the paper, those of ImageNet to the last one by their authors' shapes
LARGE = [name for name, spec in MODELS.items() if spec.outputs == 1000]


@each("name", MODELS)
def test_parameter_counts_are_those_of_the_paper(name: str) -> None:
    spec = MODELS[name]
    assert spec.parameters(spec.outputs) == spec.numel == NUMEL.get(name, spec.numel)


def test_a_model_is_built_for_the_outputs_of_its_data() -> None:
    assert MODELS["fnn3"].parameters(26) == 199_210 + 16 * 201
    assert MODELS["lstm-ptb"].parameters(50) == 66_034_000 - 9_950 * 3_001


@each("name", LARGE)
def test_large_models_turn_their_images_into_scores(name: str) -> None:
    spec = MODELS[name]
    with torch.device("meta"):  # shapes alone: no memory, no arithmetic
        scores = spec.build(1000)(torch.empty(2, *spec.image[:1], spec.image.size, spec.image.size))
    assert scores.shape == (2, 1000)


@each(
    ("name", "place"),
    [("fnn3", (0, 3, 20)), ("lenet5", (0, 3 + 2, 20 + 2)), ("resnet20", (slice(None), 3 + 2, 20 + 2))],
)
def test_images_are_standardised_into_the_models_shape(name: str, place: tuple[int | slice, ...]) -> None:
    train, _ = fashion_mnist_subset()
    shape = MODELS[name].image
    images = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 3, 20] = 255
    expected = torch.full((2, shape.channels, shape.size, shape.size), -0.2860 / 0.3530)
    expected[(slice(None), *place)] = (1 - 0.2860) / 0.3530
    torch.testing.assert_close(train.fitted(shape).prepare((images,))[0], expected)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Keep small convolutions from waiting at OpenMP barriers: 10-20x slower on two busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@each(("name", "steps", "lr"), [("fnn3", 10, 0.05), ("lenet5", 40, 0.05), ("resnet20", 6, 0.05), ("vgg16", 3, 0.01)])
def test_models_learn_a_batch(name: str, steps: int, lr: float) -> None:
    torch.manual_seed(0)
    spec = MODELS[name]
    data = DATASETS["fashion-mnist-subset"].load(Wanted(image=spec.image))
    model = spec.build(data.outputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    batch = data.train.batch(torch.arange(8))
    losses = []
    for _ in range(steps):
        loss = data.task.loss(model(*data.train.prepare(batch.inputs)), batch.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.usefixtures("one_thread")
@each("name", ["transformer", "lstm-small"])
def test_language_models_learn_what_follows(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name].build(16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tokens = (torch.arange(33) * 5 % 16).view(1, -1)
    task = LanguageModelling("byte")
    losses = []
    for _ in range(30):
        loss = task.loss(model(tokens[:, :-1]), (tokens[:, 1:],))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(2.77, abs=0.1)  # log 16: nothing is known at first
    assert losses[-1] < 0.5


@each("name", ["transformer", "lstm-small"])
def test_language_models_do_not_see_what_comes(name: str) -> None:
    torch.manual_seed(0)
    model = MODELS[name].build(256).eval()
    tokens = torch.randint(0, 256, (1, 12))
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 256
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert (before[:, 7:] - after[:, 7:]).abs().amax(2).min() > 0  # every later place depends on it


def test_transformer_tells_places_apart_by_their_distance() -> None:
    torch.manual_seed(0)
    model = Transformer(vocabulary=8, width=16, layers=1, heads=2)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    scores = model(torch.tensor([[1, 2, 3, 3], [2, 1, 3, 3]]))
    assert (scores[0, 3] - scores[1, 3]).abs().max() > 1e-3  # the same tokens before, in another order


@pytest.mark.usefixtures("one_thread")
def test_speech_model_learns_an_utterance() -> None:
    torch.manual_seed(0)
    data = DATASETS["synthetic-speech"].load(Wanted())
    batch = data.train.batch(torch.arange(2))
    model = SpeechModel(characters=29, width=32, layers=1, ahead=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    task = SpeechRecognition()
    losses = []
    for _ in range(15):
        loss = task.loss(model(*batch.inputs), batch.targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_speech_model_counts_the_frames_that_are_no_padding() -> None:
    model = SpeechModel(characters=29, width=8, layers=1).eval()
    scores, frames = model(torch.randn(3, 161, 41), torch.tensor([41, 40, 1]))
    assert scores.shape == (21, 3, 29)
    assert frames.tolist() == [21, 20, 1]
    torch.testing.assert_close(scores.exp().sum(2), torch.ones(21, 3))


# ---------------------------------------------------------------------- torchvision


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model must be one of fnn3, .* or torchvision:NAME, got 'gpt9'\. Correct it"):
        find_model("gpt9")


def test_torchvision_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(
        ValueError, match=r"where torchvision cannot be imported .*, got 'torchvision:resnet18'\. Instal"
    ):
        find_model("torchvision:resnet18")


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, object]]]:
    """Stand in for torchvision, whose functions are these two; what is asked of it is returned."""
    asked: list[tuple[str, dict[str, object]]] = []

    def get_model(name: str, **settings: object) -> nn.Module:
        asked.append((name, settings))
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4, int(str(settings["num_classes"]))))

    models = types.ModuleType("torchvision.models")
    models.list_models = lambda module: ["inception_v3", "resnet18"]  # type: ignore[attr-defined]
    models.get_model = get_model  # type: ignore[attr-defined]
    package = types.ModuleType("torchvision")
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    return asked


def test_any_classifier_of_torchvision_is_a_model(torchvision: list[tuple[str, dict[str, object]]]) -> None:
    spec = find_model("torchvision:resnet18")
    assert (spec.name, spec.task, spec.image) == ("torchvision:resnet18", "images", ImageShape(3, 224))
    assert spec.numel == 13 * 1000
    assert spec.parameters(10) == 130
    assert torchvision[0] == ("resnet18", {"weights": None, "num_classes": 1000})
    assert find_model("torchvision:inception_v3").image.size == 299
    assert torchvision[-1][1]["aux_logits"] is False  # one output, not two


@pytest.mark.usefixtures("torchvision")
def test_an_unknown_classifier_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"must be a classifier of torchvision, got 'torchvision:x'\. Choose among ince"
    ):
        find_model("torchvision:x")
