"""A checkpoint on disk: its manifest, the forms of its files, and folders of several."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, cast

import torch
import torch.distributed as dist

from gaussiank import checkpoint as tensors_of
from gaussiank.dcp_metadata import load_plain
from gaussiank.durable import HashingFile, naming, publish_folder, sha256_of, sync_file, sync_folder, write_whole

FORMAT = 1
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class SavedPart:
    """One file of a checkpoint.

    Args:
        name: below the checkpoint's folder.
        rank: worker that wrote it.
        size_bytes: its length.
        sha256: of its bytes.
    """

    name: str
    rank: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Describe a checkpoint.

    Args:
        form: ``plain`` or ``dcp``.
        world_size: workers that wrote it.
        method: the method under way, as in ``config["methods"]``.
        step: optimizer steps that this method has taken.
        config: every setting of the run.
        parameters: name -> shape of the model's parameters.
        data_digest: names the data set's content.
        run_dir: the run's directory, seen from the folder of checkpoints.
        records_bytes: length of the run's records when it was written.
        records_crc32: of those bytes.
        every: steps between checkpoints.
        keep: how many are kept.
        versions: what the bits depend on beside the settings, such as torch's version.
        parts: the files.
        study: options of the recorder of gradients, and length and CRC-32 of what it had written; None without one.
    """

    form: str
    world_size: int
    method: str
    step: int
    config: dict[str, Any]
    parameters: dict[str, list[int]]
    data_digest: str
    run_dir: str
    records_bytes: int
    records_crc32: int
    every: int
    keep: int
    versions: dict[str, str]
    parts: tuple[SavedPart, ...] = field(default=())
    study: dict[str, Any] | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of all parts together."""
        return sum(part.size_bytes for part in self.parts)

    def write(self, folder: Path) -> None:
        """Write the manifest, with a checksum of itself, into a checkpoint's folder."""
        content = {"format": FORMAT, **asdict(self)}
        text = json.dumps({**content, "sha256": _digest(content)}, indent=1) + "\n"
        write_whole(folder / MANIFEST_NAME, text.encode())

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of a checkpoint.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or of another format.
        """
        path = folder / MANIFEST_NAME
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise FileNotFoundError(
                f"checkpoint must hold {MANIFEST_NAME}, got {folder} without one. Name a whole checkpoint."
            ) from None
        except ValueError:
            raise _damaged(path, "be JSON", "something else") from None
        written = content.pop("format", None) if isinstance(content, dict) else None
        if written != FORMAT:
            raise ValueError(
                f"format of {path} must be {FORMAT}, got {written!r}. Resume with the gaussiank that wrote it."
            )
        claimed = content.pop("sha256", None)
        if claimed != _digest({"format": written, **content}):
            raise _damaged(path, "have the checksum that it names", "another one")
        return cls(**{**content, "parts": tuple(SavedPart(**part) for part in content["parts"])})

    def require_whole(self, folder: Path, parts: tuple[SavedPart, ...] | None = None) -> None:
        """Raise unless files are there with the bytes that were written.

        Args:
            folder: of the checkpoint.
            parts: which of them; all if None.

        Raises:
            ValueError: a file is missing, truncated or changed; names it, and the worker that wrote it.
        """
        for part in self.parts if parts is None else parts:
            path = folder / part.name
            if not path.is_file():
                raise _damaged(path, f"hold a part of worker {part.rank}", "no such file")
            size_bytes = path.stat().st_size
            if size_bytes != part.size_bytes:
                raise _damaged(path, f"have {part.size_bytes} bytes", str(size_bytes))
            if (found := sha256_of(path)) != part.sha256:
                raise _damaged(path, f"have SHA-256 {part.sha256[:12]}...", f"{found[:12]}...")


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path, rule: str, got: str) -> ValueError:
    return ValueError(f"{path} must {rule}, got {got}. It is damaged: resume from another checkpoint.")


FormName = Literal["plain", "dcp"]
State = Mapping[str, Any]


class Form(ABC):
    """Write and read the parts of a checkpoint.

    What is the same on every worker is ``shared``, written by rank 0; what is a worker's own is its ``own`` state.
    """

    @abstractmethod
    def write(self, folder: Path, own: State, shared: State) -> list[SavedPart]:
        """Write this worker's parts, synced to disk; every worker of the process group calls it.

        Args:
            folder: exists, without these parts.
            own: this worker's state.
            shared: written by rank 0 alone.

        Returns:
            The files that this worker has written.
        """

    @abstractmethod
    def read_shared(self, folder: Path) -> dict[str, Any]:
        """Read what is the same on every worker."""

    @abstractmethod
    def read_own(self, folder: Path, rank: int) -> dict[str, Any]:
        """Read the state of one worker."""

    @abstractmethod
    def needed(self, parts: tuple[SavedPart, ...], ranks: tuple[int, ...]) -> tuple[SavedPart, ...]:
        """Choose the files that hold what is shared, and the state of some ranks."""


class Plain(Form):
    """``shared.pt``, and ``worker-00000.pt`` for each worker; ``torch.load`` reads them."""

    def write(self, folder: Path, own: State, shared: State) -> list[SavedPart]:
        """Write one file, on rank 0 two."""
        rank = dist.get_rank()
        parts = [self._part(folder, _worker_name(rank), own, rank)]
        return parts if rank else [self._part(folder, "shared.pt", shared, rank), *parts]

    def read_shared(self, folder: Path) -> dict[str, Any]:
        """Load ``shared.pt``."""
        return _load(folder / "shared.pt")

    def read_own(self, folder: Path, rank: int) -> dict[str, Any]:
        """Load the file of one worker."""
        return _load(folder / _worker_name(rank))

    def needed(self, parts: tuple[SavedPart, ...], ranks: tuple[int, ...]) -> tuple[SavedPart, ...]:
        """Choose by name."""
        names = {"shared.pt", *map(_worker_name, ranks)}
        return tuple(part for part in parts if part.name in names)

    def _part(self, folder: Path, name: str, state: State, rank: int) -> SavedPart:
        with naming(folder / name), HashingFile(folder / name) as file:
            torch.save(dict(state), cast("IO[bytes]", file))  # it only writes
        return SavedPart(name, rank, file.size_bytes, file.sha256)


class Distributed(Form):
    """The format of ``torch.distributed.checkpoint``, every worker's state under names of its own."""

    def write(self, folder: Path, own: State, shared: State) -> list[SavedPart]:
        """Save together; each worker then takes the checksums of its own files."""
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.filesystem import FileSystemWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        rank = dist.get_rank()
        tensors = tensors_of.pack(own, f"worker-{rank:05d}")
        if rank == 0:
            tensors |= tensors_of.pack(shared, "shared")
        try:
            save(tensors, storage_writer=FileSystemWriter(folder))
        except CheckpointException as error:  # no Exception; the same on every worker
            failed, (cause, _) = next(iter(error.failures.items()))
            raise OSError(f"{cause} (rank {failed})") from error
        mine = sorted(folder.glob(f"__{rank}_*")) + ([folder / ".metadata"] if rank == 0 else [])
        for path in mine:
            sync_file(path)
        return [SavedPart(path.name, rank, path.stat().st_size, sha256_of(path)) for path in mine]

    def read_shared(self, folder: Path) -> dict[str, Any]:
        """Read the tensors below ``shared``."""
        return tensors_of.unpack(tensors_of.read(folder, "shared"), "shared")

    def read_own(self, folder: Path, rank: int) -> dict[str, Any]:
        """Read the tensors below the worker's name."""
        prefix = f"worker-{rank:05d}"
        return tensors_of.unpack(tensors_of.read(folder, prefix), prefix)

    def needed(self, parts: tuple[SavedPart, ...], ranks: tuple[int, ...]) -> tuple[SavedPart, ...]:
        """Take all: only torch knows which file holds what."""
        return parts


FORMS: dict[str, Form] = {"plain": Plain(), "dcp": Distributed()}
"""Name -> how files are written and read."""


def _worker_name(rank: int) -> str:
    return f"worker-{rank:05d}.pt"


def _load(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = load_plain(path, path, "a state")
    return state


_NAME = re.compile(r"(\d{2,})-[a-z0-9]+-step-(\d{8,})")


class Place(NamedTuple):
    """Where in a run a checkpoint was taken; later places are larger."""

    method_index: int
    step: int


class CheckpointFolder:
    """The checkpoints of one run. Only rank 0 changes it.

    Args:
        path: created when the first checkpoint is begun.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def whole(self) -> dict[Place, Path]:
        """Return the complete checkpoints, the oldest first; what a crash has left behind is none."""
        found = {}
        for path in self.path.glob("*-step-*") if self.path.is_dir() else ():
            name = _NAME.fullmatch(path.name)
            if name and (path / MANIFEST_NAME).is_file():
                found[Place(int(name[1]), int(name[2]))] = path
        return dict(sorted(found.items()))

    def last(self) -> Path | None:
        """Return the newest complete checkpoint, or None."""
        return next(reversed(self.whole().values()), None)

    def begin(self, place: Place, method: str) -> Path:
        """Make the folder in which a checkpoint is written; it does not count yet."""
        self.path.mkdir(parents=True, exist_ok=True)
        unfinished = self.unfinished(place, method)
        self.discard(unfinished)
        unfinished.mkdir()
        return unfinished

    def unfinished(self, place: Place, method: str) -> Path:
        """Name the folder that ``begin`` makes."""
        base = re.sub("[^a-z0-9]", "", method.partition(":")[0].lower()) or "method"
        return self.path / f".{place.method_index:02d}-{base}-step-{place.step:08d}"

    def publish(self, unfinished: Path) -> Path:
        """Let a written checkpoint count."""
        path = unfinished.with_name(unfinished.name.removeprefix("."))
        publish_folder(unfinished, path)
        return path

    def discard(self, unfinished: Path) -> None:
        """Delete a checkpoint that could not be finished, if it is there."""
        shutil.rmtree(unfinished, ignore_errors=True)

    def prune(self, keep: int) -> None:
        """Delete all but the last ``keep`` checkpoints, and what crashes have left behind."""
        for path in list(self.whole().values())[:-keep]:  # first the name: half of one must not look whole
            path.rename(path.with_name(f".{path.name}.old"))
        for path in self.path.glob(".*-step-*"):
            self.discard(path)
        sync_folder(self.path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out while this process lives, however it ends.

        Raises:
            RuntimeError: another run writes here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RuntimeError(
                    f"checkpoint_dir must not be in use, got {self.path}, where another run is writing. "
                    "End that run, or choose another directory."
                ) from None
            yield
        finally:
            os.close(handle)
