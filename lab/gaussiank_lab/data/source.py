"""Where a data set comes from: how to find it, load it, and get it when it is missing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gaussiank_lab.data.image_set import GREY_28, ImageShape
from gaussiank_lab.data.split import Data
from gaussiank_lab.tasks import TaskName


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
