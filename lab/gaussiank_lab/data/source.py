"""What a data set is: where it comes from, its split, and the batches that workers are dealt."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from gaussiank_lab.tasks import Task, TaskName


def damaged(path: Path, rule: str, got: object, advice: str = "Fetch it again.") -> ValueError:
    """Make the error for a file that breaks ``rule``."""
    return ValueError(f"{path} must {rule}, got {got}. {advice}")


@contextmanager
def reading(path: Path, rule: str, *errors: type[Exception], advice: str = "Fetch it again.") -> Iterator[None]:
    """Turn ``errors`` raised inside into a sentence that names the file.

    Raises:
        ValueError: one of them was raised.
        FileNotFoundError: the file is not there.
    """
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} must exist, got nothing there. {advice}") from None
    except errors as error:
        text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise damaged(path, rule, f"an error ({text})", advice) from None


class Batch(NamedTuple):
    """Some examples: what goes into the model, and what should come out."""

    inputs: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]

    def to(self, device: torch.device) -> Batch:
        """Return the same examples on a device."""
        return Batch(tuple(t.to(device) for t in self.inputs), tuple(t.to(device) for t in self.targets))


class DataSplit(ABC):
    """Training or test examples, numbered from 0.

    Attributes:
        unit: what they are called, in the plural.
    """

    unit: str = "examples"

    @abstractmethod
    def __len__(self) -> int:
        """Return their number."""

    @abstractmethod
    def batch(self, chosen: Tensor) -> Batch:
        """Collect examples as they are stored.

        Args:
            chosen: int64 ``[b]``, their numbers.
        """

    def prepare(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Turn stored inputs, moved to the model's device, into what the model takes."""
        return inputs

    def augment(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Change examples at random where this makes sense; it does for images alone.

        Raises:
            ValueError: it does not.
        """
        raise ValueError(f"augment must be off for {self.unit}, got on. Leave it out.")


@dataclass(frozen=True, eq=False)
class Data:
    """A data set, loaded.

    Args:
        task: what a model does with it.
        train: examples to learn from.
        test: examples to be judged by.
        outputs: classes, tokens or characters that a model must tell apart.
        digest: SHA-256 that names the content: of the examples, or for files read later of their names and sizes.
    """

    task: Task
    train: DataSplit
    test: DataSplit
    outputs: int
    digest: str


class ImageShape(NamedTuple):
    """Channels, and height and width, of a model's images."""

    channels: int
    size: int


GREY_28 = ImageShape(1, 28)


@dataclass(frozen=True)
class Wanted:
    """Say what a model wants of a data set.

    Args:
        data_dir: the user's folder of data sets (for ``text`` also a file), or None.
        image: channels and size of the model's images; the data set is fitted to it.
        context: tokens that a language model sees at once.
    """

    data_dir: Path | None = None
    image: ImageShape = GREY_28
    context: int = 128


@dataclass(frozen=True)
class DataSource:
    """Describe a data set of the lab.

    Args:
        name: its key in ``DATASETS``.
        task: what it is for.
        about: what it is, in a few words.
        get: one sentence: how to get it.
        find: tells where it is; raises ``FileNotFoundError`` when it is missing.
        load: loads it; raises ``ValueError`` with the name of a damaged file.
    """

    name: str
    task: TaskName
    about: str
    get: str
    find: Callable[[Path | None], Path]
    load: Callable[[Wanted], Data]


def folders(data_dir: Path | None, *below: str) -> list[Path]:
    """Return where a data set may be: folders of its names below ``data_dir``, then ``data_dir`` itself."""
    return [] if data_dir is None else [*(data_dir / name for name in below), data_dir]


def locate(name: str, places: Iterable[Path], files: Sequence[str], get: str) -> Path:
    """Return the first place that holds all ``files`` (each a glob pattern).

    Raises:
        FileNotFoundError: none does; names the first file that is missing.
    """
    tried = list(places)
    for place in tried:
        if place.is_dir() and all(any(place.glob(pattern)) for pattern in files):
            return place
    where = " or ".join(map(str, tried)) or "no folder (--data-dir was not given)"
    held = next((place for place in tried if place.is_dir()), None)
    lacking = next((pattern for pattern in files if held is None or not any(held.glob(pattern))), files[0])
    raise FileNotFoundError(f"data_dir must hold {name}, got {where} without {lacking}. {get}")


def digest_of(tensors: Iterable[Tensor]) -> str:
    """Return the SHA-256 of the bytes of some tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def digest_of_files(files: Iterable[Path]) -> str:
    """Return the SHA-256 of the names and sizes of files, for a data set that is not read whole."""
    listed = "\n".join(f"{path.parent.name}/{path.name} {path.stat().st_size}" for path in files)
    return hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest()


class Batches:
    """Deal the examples to workers anew each epoch; the order depends on seed and epoch alone.

    Every worker gets as many batches, of different examples; what does not fill a batch is left out of the epoch. What
    augmentation does depends on seed, epoch, step and rank alone.

    Args:
        data: examples to deal.
        batch_size: examples for each worker and step.
        rank: this worker.
        world_size: number of workers.
        seed: number that the order starts from.
        augment: change images at random as they are dealt.

    Raises:
        ValueError: too few examples for one batch on every worker, or a rank that is none of theirs.
    """

    def __init__(
        self, data: DataSplit, batch_size: int, *, rank: int, world_size: int, seed: int, augment: bool = False
    ) -> None:
        if not 1 <= world_size <= len(data):
            raise ValueError(
                f"world_size must be in [1, {len(data)}] for {len(data)} {data.unit}, got {world_size}. "
                "Start as many workers."
            )
        if not 0 <= rank < world_size:
            raise ValueError(
                f"rank must be in [0, {world_size - 1}] on {world_size} workers, got {rank}. Give this worker's own."
            )
        if not 1 <= batch_size <= len(data) // world_size:
            raise ValueError(
                f"batch_size must be in [1, {len(data) // world_size}] for {len(data)} {data.unit} on {world_size} "
                f"workers, got {batch_size}. Choose one that fits."
            )
        self._data = data
        self._batch_size = batch_size
        self._seed, self._rank, self._augment = seed, rank, augment
        self._sampler: DistributedSampler[Any] = DistributedSampler(
            cast("Dataset[Any]", data), world_size, rank, shuffle=True, seed=seed, drop_last=True
        )

    def __len__(self) -> int:
        """Return the steps in an epoch."""
        return len(self._sampler) // self._batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from number ``start`` on."""
        self._sampler.set_epoch(epoch)
        order = torch.tensor(list(self._sampler))
        for step in range(start, len(self)):
            chosen = order[step * self._batch_size : (step + 1) * self._batch_size]
            batch = self._data.batch(chosen)
            yield self._data.augment(batch, self._generator(epoch, step)) if self._augment else batch

    def _generator(self, epoch: int, step: int) -> torch.Generator:
        """Start a generator for one batch, so that a run that goes on in the middle sees the same images."""
        name = f"{self._seed} {epoch} {step} {self._rank}".encode()
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name).digest()[:7], "big"))
