"""What ``torch.distributed.checkpoint`` wrote, read without running what is in it: torch's own reader unpickles all."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NoReturn

import torch
from torch import Tensor

_NAME = ".metadata"
_METADATA = "torch.distributed.checkpoint.metadata"
_FILES = "torch.distributed.checkpoint.filesystem"


@dataclass(frozen=True)
class Chunk:
    """A part of a tensor, as one worker saved it.

    Args:
        start: index of its first entry in the tensor.
        shape: its size.
        file: below the folder.
        offset: of its first byte there.
        length: in bytes, as ``torch.save`` wrote it.
    """

    start: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class Entry:
    """A tensor of a checkpoint, not yet read.

    Args:
        folder: of the checkpoint.
        name: of the tensor.
        dtype: of its entries.
        shape: its size.
        chunks: its parts; one, unless it was a DTensor.
    """

    folder: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]

    def read(self) -> Tensor:
        """Read the tensor, onto the CPU.

        Raises:
            ValueError: a file is missing or cut short, or holds something else there.
        """
        return self.region((0,) * len(self.shape), self.shape)

    def region(self, start: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        """Read a part of the tensor, onto the CPU, from the files that hold some of it.

        Args:
            start: index of its first entry.
            shape: its size.

        Raises:
            ValueError: as ``read``, or no file holds some of it.
        """
        for chunk in self.chunks:
            if (chunk.start, chunk.shape) == (start, shape):
                return self._read(chunk)
        if math.prod(shape) * self.dtype.itemsize > sum(chunk.length for chunk in self.chunks):
            raise _refused(self.folder / _NAME, f"name files for all of {self.name}", "fewer bytes")
        found = torch.empty(shape, dtype=self.dtype, device="cpu")
        missing = found.numel()
        for chunk in self.chunks:
            low = tuple(map(max, start, chunk.start))
            high = tuple(min(a + b, c + d) for a, b, c, d in zip(start, shape, chunk.start, chunk.shape, strict=True))
            if all(a < b for a, b in zip(low, high, strict=True)):
                here, there = (
                    tuple(slice(a - c, b - c) for a, b, c in zip(low, high, origin, strict=True))
                    for origin in (start, chunk.start)
                )
                found[here] = self._read(chunk)[there]
                missing -= found[here].numel()
        if missing:
            raise _refused(self.folder / _NAME, f"name files for all of {self.name}", f"{missing} entries without")
        return found

    def _read(self, chunk: Chunk) -> Tensor:
        path = self.folder / chunk.file
        if not path.is_file() or path.stat().st_size < chunk.offset + chunk.length:
            raise _refused(path, f"hold {self.name}", "no such bytes")
        with path.open("rb") as file:
            file.seek(chunk.offset)
            tensor = load_plain(io.BytesIO(file.read(chunk.length)), path, self.name)
        if not isinstance(tensor, Tensor) or (tensor.dtype, tuple(tensor.shape)) != (self.dtype, chunk.shape):
            raise _refused(path, f"hold {self.name} as {_NAME} describes it", type(tensor).__name__)
        return tensor


def entries(folder: str | Path, prefix: str) -> dict[str, Entry]:
    """Find the tensors of a checkpoint whose names start with ``prefix``.

    Raises:
        FileNotFoundError: the folder is none that was saved to.
        ValueError: its list of contents is damaged, or is not what torch writes.
    """
    path = Path(folder, _NAME)
    if not path.is_file():
        raise FileNotFoundError(
            f"checkpoint must be a folder that torch.distributed.checkpoint saved to, got {folder} without {_NAME}. "
            "Name another."
        )
    try:
        with path.open("rb") as file:
            metadata = _Reader(file).load()
        kept: dict[str, dict[tuple[int, ...], Mapping[str, Any]]] = {}
        for index, place in _state(metadata, "Metadata")["storage_data"].items():
            where = _state(index, "MetadataIndex")
            kept.setdefault(where["fqn"], {})[tuple(where.get("offset") or ())] = _state(place, "_StorageInfo")
        known = _state(metadata, "Metadata")["state_dict_metadata"]
        return {
            name: _entry(Path(folder), name, _state(value, "TensorStorageMetadata"), kept[name])
            for name, value in known.items()
            if name.startswith(prefix) and value.name == "TensorStorageMetadata"
        }
    except Exception as error:  # noqa: BLE001  damaged or hostile bytes raise nearly anything
        raise _refused(path, "be what torch.distributed.checkpoint writes", _words(error)) from None


def load_plain(file: Path | io.BytesIO, path: str | Path, name: str) -> Any:
    """Read what ``torch.save`` made of tensors and plain values; nothing in it is run.

    Args:
        file: what it was saved to.
        path: where that lies, for the message.
        name: what it holds, likewise.

    Raises:
        ValueError: they are damaged, or hold anything else.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # noqa: BLE001  damaged or hostile bytes raise nearly anything
        raise _refused(path, f"hold {name} as torch.save writes tensors and plain values", _words(error)) from None


def _entry(
    folder: Path, name: str, tensor: Mapping[str, Any], places: Mapping[tuple[int, ...], Mapping[str, Any]]
) -> Entry:
    dtype, shape = tensor["properties"].state[0], tuple(tensor["size"])
    if not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError(f"{name} has no dtype, size or place")
    chunks = []
    for chunk in (_state(one, "ChunkStorageMetadata") for one in tensor["chunks"]):
        start, size = tuple(chunk["offsets"]), tuple(chunk["sizes"])
        place = places[start]
        file, offset, length = (place[field] for field in ("relative_path", "offset", "length"))
        if "transform_descriptors" in place or not len(start) == len(size) == len(shape):
            raise pickle.UnpicklingError(f"{name} does not lie in plain pieces")
        if not all(type(n) is int and n >= 0 for n in (*shape, *start, *size, offset, length)):
            raise pickle.UnpicklingError(f"{name} has no dtype, size or place")
        if PurePath(file).name != file:
            raise pickle.UnpicklingError(f"{name} lies in {file!r}, outside the folder")
        chunks.append(Chunk(start, size, file, offset, length))
    return Entry(folder, name, dtype, shape, tuple(chunks))


# ---------------------------------------------------------------------- the pickle


class _StandIn:
    """Stands for one of torch's classes while a pickle is read: keeps the state that it is given."""

    name = ""
    state: Any = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _stand_in(name: str) -> type[_StandIn]:
    return type(name, (_StandIn,), {"name": name})


def _ignored(*_: Any) -> None:
    """Stand for what makes a value that nothing here needs."""


# What torch 2.6 to 2.13 writes for tensors and values under plain names, and a harmless stand-in for each.
_STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    **{
        (_METADATA, name): _stand_in(name)
        for name in (
            *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata"),
            *("ChunkStorageMetadata", "TensorProperties"),
        )
    },
    (_FILES, "_StorageInfo"): _stand_in("_StorageInfo"),
    (_METADATA, "_MEM_FORMAT_ENCODING"): _ignored,
    ("builtins", "getattr"): _ignored,  # Python 3.11's first releases write a member of an Enum by it
    ("torch", "Size"): tuple,
    ("torch.serialization", "_get_layout"): _ignored,
    ("pathlib", "PosixPath"): _ignored,
    ("pathlib", "WindowsPath"): _ignored,
    ("pathlib._local", "PosixPath"): _ignored,  # Python 3.13
    ("pathlib._local", "WindowsPath"): _ignored,
}


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(dtype := vars(torch).get(name), torch.dtype):
            return dtype
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no list of tensors needs")
        return _STAND_INS[module, name]

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers outside itself")


def _state(value: Any, name: str) -> dict[str, Any]:
    """Return the fields of what stands for an object of one of torch's classes."""
    if getattr(value, "name", None) != name or not isinstance(value.state, dict):
        raise pickle.UnpicklingError(f"it holds a {type(value).__name__} in place of a {name}")
    return value.state


def _words(error: Exception) -> str:
    said = str(error).strip() if isinstance(error, pickle.UnpicklingError) else ""
    return f"an error ({said.splitlines()[0] if said else type(error).__name__})"


def _refused(path: str | Path, rule: str, got: str) -> ValueError:
    return ValueError(f"{path} must {rule}, got {got}. Load a checkpoint that was saved whole, and that you trust.")
