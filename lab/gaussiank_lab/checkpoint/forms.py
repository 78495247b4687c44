"""How the state of a run lies in files: torch's plain form, or that of torch.distributed.checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal, cast

import torch
import torch.distributed as dist

from gaussiank import checkpoint as tensors_of
from gaussiank.dcp_metadata import load_plain
from gaussiank.durable import HashingFile, naming, sha256_of, sync_file
from gaussiank_lab.checkpoint.manifest import Part

FormName = Literal["plain", "dcp"]
State = Mapping[str, Any]


class Form(ABC):
    """Write and read the parts of a checkpoint.

    What is the same on every worker is ``shared``, written by rank 0; what is a worker's own is its ``own`` state.
    """

    @abstractmethod
    def write(self, folder: Path, own: State, shared: State) -> list[Part]:
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
    def needed(self, parts: tuple[Part, ...], ranks: tuple[int, ...]) -> tuple[Part, ...]:
        """Choose the files that hold what is shared, and the state of some ranks."""


class Plain(Form):
    """``shared.pt``, and ``worker-00000.pt`` for each worker; ``torch.load`` reads them."""

    def write(self, folder: Path, own: State, shared: State) -> list[Part]:
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

    def needed(self, parts: tuple[Part, ...], ranks: tuple[int, ...]) -> tuple[Part, ...]:
        """Choose by name."""
        names = {"shared.pt", *map(_worker_name, ranks)}
        return tuple(part for part in parts if part.name in names)

    def _part(self, folder: Path, name: str, state: State, rank: int) -> Part:
        with naming(folder / name), HashingFile(folder / name) as file:
            torch.save(dict(state), cast("IO[bytes]", file))  # it only writes
        return Part(name, rank, file.size_bytes, file.sha256)


class Distributed(Form):
    """The format of ``torch.distributed.checkpoint``, every worker's state under names of its own."""

    def write(self, folder: Path, own: State, shared: State) -> list[Part]:
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
        return [Part(path.name, rank, path.stat().st_size, sha256_of(path)) for path in mine]

    def read_shared(self, folder: Path) -> dict[str, Any]:
        """Read the tensors below ``shared``."""
        return tensors_of.unpack(tensors_of.read(folder, "shared"), "shared")

    def read_own(self, folder: Path, rank: int) -> dict[str, Any]:
        """Read the tensors below the worker's name."""
        prefix = f"worker-{rank:05d}"
        return tensors_of.unpack(tensors_of.read(folder, prefix), prefix)

    def needed(self, parts: tuple[Part, ...], ranks: tuple[int, ...]) -> tuple[Part, ...]:
        """Take all: only torch knows which file holds what."""
        return parts


FORMS: dict[str, Form] = {"plain": Plain(), "dcp": Distributed()}
"""Name -> how files are written and read."""


def _worker_name(rank: int) -> str:
    return f"worker-{rank:05d}.pt"


def _load(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = load_plain(path, path, "a state")
    return state
