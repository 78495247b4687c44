"""Make the fixture of real selections: what Top_k with error feedback chose in short training runs.

Five models are trained by one worker on the data of the package (the language model on the English text of Python's
own help topics), each at three densities with residuals of its own, whole model at once. The last selection of each run
is kept: its indices as differences, and at density 0.001 its values, rounded to bfloat16. Needs a few minutes.

    python scripts/make_selections.py [--out FILE] [--models fnn3,wide] [--steps 100]
"""

from __future__ import annotations

import argparse
import math
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gaussiank.compressors import TopK
from gaussiank.feedback import ErrorFeedback
from gaussiank.layout import Layout
from gaussiank.schedule import entries
from gaussiank.sparse import SparseGradient
from gaussiank_lab.data import DATASETS, Batches, Wanted
from gaussiank_lab.data.source import GREY_28, ImageShape
from gaussiank_lab.models import MODELS

OUT = Path(__file__).parent.parent / "tests/fixtures/selections.npz"
DENSITIES = (0.01, 0.001, 0.0001)
SEED = 20261124
MOMENTUM = 0.9
Pairs = Iterator[tuple[Tensor, Tensor]]


def images(shape: ImageShape, batch: int) -> Pairs:
    """Yield images as a model of that shape wants them, and labels, without end."""
    train = DATASETS["fashion-mnist-subset"].load(Wanted(image=shape)).train
    batches = Batches(train, batch, rank=0, world_size=1, seed=SEED)
    epoch = 0
    while True:
        for drawn in batches.epoch(epoch):
            (prepared,) = train.prepare(drawn.inputs)
            (labels,) = drawn.targets
            yield prepared, labels
        epoch += 1


class WordModel(nn.Module):
    """Predict the next word with an embedding, an LSTM and a linear layer: 9.0e6 parameters with 8,000 words."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, 256)
        self.lstm = nn.LSTM(256, 512, batch_first=True)
        self.out = nn.Linear(512, words)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return a row of word scores for each token."""
        scores: Tensor = self.out(self.lstm(self.embedding(tokens))[0])
        return scores.flatten(0, 1)


def words(batch: int, length: int, vocabulary: int) -> Pairs:
    """Yield batches of word numbers, and the same moved by one."""
    from pydoc_data.topics import topics

    text = re.findall(r"\w+|[^\w\s]", "\n".join(topics[key] for key in sorted(topics)))
    names, counts = np.unique(text, return_counts=True)
    known = {str(name): i + 1 for i, name in enumerate(names[np.argsort(-counts, kind="stable")][: vocabulary - 1])}
    tokens = torch.tensor([known.get(word, 0) for word in text])
    random = torch.Generator().manual_seed(SEED)
    while True:
        starts = torch.randint(len(tokens) - length - 1, (batch,), generator=random)
        places = starts[:, None] + torch.arange(length)
        yield tokens[places], tokens[places + 1].flatten()


def wide() -> nn.Module:
    """Build an MLP, 784-2048-2048-10: 5.8e6 parameters."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10)
    )


def convnet() -> nn.Module:
    """Build two convolutions and a wide head, as AlexNet has: 6.5e6 parameters, 99 % of them in linear layers."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(3136, 2000), nn.ReLU(), nn.Linear(2000, 10)),
    )


class Run(NamedTuple):
    """How a model is trained, and at which densities; the small models have too few entries for the lowest."""

    build: Callable[[], nn.Module]
    pairs: Callable[[], Pairs]
    lr: float
    densities: tuple[float, ...] = DENSITIES


RUNS = {
    "fnn3": Run(lambda: MODELS["fnn3"].build(10), lambda: images(MODELS["fnn3"].image, 128), 0.01, DENSITIES[:2]),
    "lenet5": Run(lambda: MODELS["lenet5"].build(10), lambda: images(MODELS["lenet5"].image, 128), 0.01, DENSITIES[:2]),
    "words": Run(lambda: WordModel(8000), lambda: words(10, 35, 8000), 0.2),
    "wide": Run(wide, lambda: images(GREY_28, 128), 0.01),
    "convnet": Run(convnet, lambda: images(GREY_28, 64), 0.01),
}


def train(name: str, density: float, steps: int) -> tuple[SparseGradient, float]:
    """Train one model and return its last selection and its last loss."""
    torch.manual_seed(SEED)
    run = RUNS[name]
    model = run.build()
    parameters = dict(model.named_parameters())
    layout = Layout(tuple(parameters), tuple(parameter.numel() for parameter in parameters.values()))
    feedback = ErrorFeedback({key: parameter.numel() for key, parameter in parameters.items()})
    optimizer = torch.optim.SGD(parameters.values(), lr=run.lr, momentum=MOMENTUM)
    k = entries(density, layout.numel)
    for _, (inputs, targets) in zip(range(steps), run.pairs(), strict=False):
        loss = nn.functional.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        grad = torch.cat([p.grad.flatten() for p in parameters.values() if p.grad is not None])
        sparse = feedback.take(layout, grad, lambda u: SparseGradient.pick(u, TopK().select(u, k).indices))
        feedback.seal()
        feedback.record_finite(torch.isfinite(loss))
        feedback.settle()
        mean = sparse.dense()
        for parameter, (_, place) in zip(parameters.values(), layout.slices(), strict=True):
            parameter.grad = mean[place].view_as(parameter)
        optimizer.step()
    if not math.isfinite(loss.item()):
        raise SystemExit(f"{name} at density {density} must train, got a loss of {loss.item()}. Lower its rate.")
    return sparse, loss.item()


def arrays_of(name: str, density: float, steps: int) -> dict[str, np.ndarray]:
    """Train once and return what is kept of it."""
    sparse, loss = train(name, density, steps)
    print(f"{name}/{density:g}: {sparse.kept} of {sparse.numel}, loss {loss:.3f}", flush=True)
    gaps = np.diff(sparse.indices.numpy(), prepend=-1)
    kept = {"steps": gaps.astype(np.min_scalar_type(int(gaps.max()))), "numel": np.array(sparse.numel)}
    if density == DENSITIES[1]:
        kept["bf16"] = sparse.values.bfloat16().view(torch.int16).numpy()
    return {f"{name}/{density:g}/{key}": array for key, array in kept.items()}


def save(arrays: dict[str, np.ndarray], out: Path) -> None:
    """Write an npz file without a clock in its bytes."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_LZMA) as archive:
        for key, array in sorted(arrays.items()):
            entry = zipfile.ZipInfo(f"{key}.npy", date_time=(2026, 11, 24, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_LZMA
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(file, np.atleast_1d(array))
    print(f"{out}: {out.stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT, help="file to write; what it holds of other models stays")
    parser.add_argument("--steps", type=int, default=100, help="steps of each run")
    parser.add_argument("--models", default=",".join(RUNS), help="by comma")
    arguments = parser.parse_args()
    torch.set_num_threads(
        1
    )  # the order of sums, and with it the selection, then does not depend on the machine's cores
    arrays = dict(np.load(arguments.out)) if arguments.out.is_file() else {}
    for name in arguments.models.split(","):
        for density in RUNS[name].densities:
            arrays |= arrays_of(name, density, arguments.steps)
    save(arrays, arguments.out)


if __name__ == "__main__":
    main()
