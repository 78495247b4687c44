"""Every worker's own state: a folder with a file of each, or tensors under names of their own for other checkpoints."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor

from gaussiank.comm import together
from gaussiank.dcp_metadata import entries, load_plain
from gaussiank.durable import HashingFile, naming, sha256_of, write_whole
from gaussiank.reshard import reshard, sources

_SMALL = 1024  # entries; smaller tensors travel together with the values around them
_REST = "rest"
_WORKER = "gaussiank/worker-{:05d}"
_RANK = re.compile(r"gaussiank/worker-(\d{5,9})/")

FORMAT = 1
MANIFEST_NAME = "compression.json"
_PART = re.compile(r"[a-z]+-[0-9a-f]{8}-\d{5}\.pt")


class HasState(Protocol):
    """Anything with a ``state_dict``, such as a ``Compression``."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...


class _Part(NamedTuple):
    """One worker's file."""

    name: str
    size_bytes: int
    sha256: str


def save(
    state: Mapping[str, Any],
    folder: str | Path,
    group: dist.ProcessGroup | None = None,
    *,
    name: str = "compression",
) -> None:
    """Write every worker's state to a folder, each into a file of its own: all of them, or nothing.

    A list of the files with their SHA-256 comes last and counts; what was saved there before is whole until then, and
    is deleted after. Other files in the folder stay.

    Args:
        state: this worker's ``Compression.state_dict``. Not modified.
        folder: created if need be; one that every worker sees.
        group: process group, or None for the default one; each of its workers must call this.
        name: lower-case letters that file names begin with; one folder may hold saves of several names.

    Raises:
        OSError: a worker could not write; the same on all, and nothing has changed.
        ValueError: the states are of different steps.
    """
    folder, rank = Path(folder), dist.get_rank(group)

    def begin() -> str:
        if rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
        return uuid.uuid4().hex[:8]

    token = together(begin, group, what=f"{name}.save")[0]
    path = folder / f"{name}-{token}-{rank:05d}.pt"
    try:
        written = together(lambda: (_write(path, state), state["step"]), group, what=f"{name}.save")
        require_one([step for _, step in written], "step")
        parts = [_Part(*part) for part, _ in written]
        together(lambda: _finish(folder, name, parts, state["step"]) if rank == 0 else None, group, what=f"{name}.save")
    except (OSError, ValueError):  # of all workers alike; after Ctrl-C or a lost worker, others may still name the file
        if not _names(folder / f"{name}.json", path):
            path.unlink(missing_ok=True)
        raise


def load(
    folder: str | Path,
    fits: Callable[[Mapping[str, Any]], None],
    group: dist.ProcessGroup | None = None,
    *,
    name: str = "compression",
) -> dict[str, Any]:
    """Read this worker's state from what ``save`` wrote, if every worker can and all of it is right.

    Saved by another number of workers, the residuals are shared out anew by ``gaussiank.reshard``.

    Args:
        folder: given to ``save``.
        fits: raises ``ValueError`` where this worker cannot take a state.
        group: process group, or None for the default one; each of its workers must call this.
        name: given to ``save``.

    Returns:
        A state for ``Compression.load_state_dict``.

    Raises:
        FileNotFoundError: nothing was saved there.
        ValueError: a file is damaged or missing, or a state does not fit; the same on all workers.
    """
    folder, states = Path(folder), []

    def read_own() -> str:
        parts, digest = _listed(folder, name)
        rank, world_size = dist.get_rank(group), dist.get_world_size(group)
        wanted = (rank,) if len(parts) == world_size else sources(rank, world_size, len(parts))
        found = [_read_part(folder / parts[source].name, parts[source]) for source in wanted]
        states.append(found[0] if len(parts) == world_size else reshard(found, rank, world_size))
        fits(states[0])
        return digest

    require_one(together(read_own, group, what=f"{name}.load"), "list of files")
    return states[0]


def _write(path: Path, state: Mapping[str, Any]) -> _Part:
    with naming(path), HashingFile(path) as file:
        torch.save(dict(state), cast("IO[bytes]", file))  # it only writes
    return _Part(path.name, file.size_bytes, file.sha256)


def _finish(folder: Path, name: str, parts: list[_Part], step: int) -> None:
    for part in parts:
        if not (folder / part.name).is_file():
            raise FileNotFoundError(
                f"folder must be one that every worker sees, got {folder} without {part.name} there."
            )
    content = {"format": FORMAT, "step": step, "files": [part._asdict() for part in parts]}
    text = json.dumps({**content, "sha256": _digest(content)}, indent=1) + "\n"
    write_whole(folder / f"{name}.json", text.encode())
    for path in folder.glob(f"{name}-*"):
        if _PART.fullmatch(path.name) and path.name not in {part.name for part in parts}:
            with contextlib.suppress(OSError):  # another user's, for example: this save is whole without it
                path.unlink()


def _names(manifest: Path, path: Path) -> bool:
    """Tell whether the list of files is already the one with this file."""
    try:
        return path.name.encode() in manifest.read_bytes()
    except OSError:
        return False


def _listed(folder: Path, name: str) -> tuple[list[_Part], str]:
    """Return the files that were saved, in the order of ranks, and a digest that names this save."""
    path = folder / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"folder must be one that {name}.save wrote, got {folder} without {path.name}. Name another, or "
            "leave loading out where a run begins anew."
        )
    try:
        content = json.loads(path.read_bytes())
        if (written := content.get("format")) != FORMAT:
            raise _damaged(path, f"have format {FORMAT}", f"{written!r}")
        claimed = str(content.pop("sha256"))
        parts = [_Part(**part) for part in content["files"]]
    except (KeyError, TypeError, AttributeError, RecursionError, UnicodeDecodeError, json.JSONDecodeError):
        raise _damaged(path, "be a list of files", "something else") from None
    if claimed != _digest(content) or not parts or not all(_PART.fullmatch(str(part.name)) for part in parts):
        raise _damaged(path, "have the checksum that it names", "another one")
    return parts, claimed


def _read_part(path: Path, part: _Part) -> dict[str, Any]:
    if not path.is_file():
        raise _damaged(path, "be there", "no such file")
    if path.stat().st_size != part.size_bytes or sha256_of(path) != part.sha256:
        raise _damaged(path, f"have {part.size_bytes} bytes with SHA-256 {part.sha256[:12]}...", "others")
    state: dict[str, Any] = load_plain(path, path, "a state")
    return state


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _damaged(path: Path, rule: str, got: str) -> ValueError:
    return ValueError(f"{path} must {rule}, got {got}. It is damaged, or of another gaussiank. Load another.")


def require_one(values: list[Any], name: str) -> None:
    """Raise unless what the workers have, by rank, is the same.

    Raises:
        ValueError: it is not.
    """
    for rank, value in enumerate(values):
        if value != values[0]:
            raise ValueError(
                f"{name} must be the same on every worker, got {values[0]} on rank 0 and {value} on rank {rank}. Save "
                "and load between the same two steps everywhere, in a folder that all workers see."
            )


def pack(state: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """Turn a nested state into one flat dictionary of tensors.

    Large tensors keep a name, made of their keys; everything else lies in one uint8 tensor, ``prefix/rest``.

    Args:
        state: dictionaries, lists, tensors and plain values, as ``state_dict`` returns them. Not modified.
        prefix: what every name starts with.

    Example:
        >>> packed = pack({"step": 3, "residual": {"w": torch.zeros(2000)}}, "mine")
        >>> sorted(packed)
        ['mine/residual/w', 'mine/rest']
        >>> unpack(packed, "mine")["step"]
        3
    """
    tensors: dict[str, Tensor] = {}
    file = io.BytesIO()
    torch.save(_without_tensors(state, prefix, tensors), file)
    tensors[f"{prefix}/{_REST}"] = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
    return tensors


def unpack(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Undo ``pack``.

    Raises:
        ValueError: there is no state under this prefix.
    """
    key = f"{prefix}/{_REST}"
    if key not in tensors:
        raise ValueError(f"tensors must hold {key!r}, got {len(tensors)} others. Load the whole checkpoint.")
    rest = load_plain(io.BytesIO(tensors[key].numpy().tobytes()), key, "a state")
    try:
        restored: dict[str, Any] = _with_tensors(rest, tensors)
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{key} must name tensors beside it, got others. Load the whole checkpoint.") from None
    return restored


def shards(compression: HasState, rank: int) -> dict[str, Tensor]:
    """Return a worker's compression state for ``torch.distributed.checkpoint.save``.

    Plain tensors under one name are taken from rank 0 alone there, without a word; therefore every name starts with the
    worker's rank.

    Args:
        compression: what ``gaussiank.compress`` returned.
        rank: this worker's.

    Returns:
        Tensors to add to the dictionary that is saved.

    Example:
        >>> class Two:
        ...     def state_dict(self):
        ...         return {"hints": {"w": torch.tensor(0.5)}}
        >>> list(shards(Two(), rank=1))
        ['gaussiank/worker-00001/rest']
    """
    return pack(compression.state_dict(), _WORKER.format(rank))


def load_shards(checkpoint: str | Path, rank: int, world_size: int) -> dict[str, Any]:
    """Read what ``shards`` gave to ``torch.distributed.checkpoint.save``, for this worker.

    Saved by another number of workers, the residuals are shared out anew by ``gaussiank.reshard``. Nothing in the files
    is run, whoever wrote them: torch's own reader would.

    Args:
        checkpoint: folder that was saved to.
        rank: this worker's.
        world_size: number of workers now.

    Returns:
        State for ``Compression.load_state_dict``.

    Raises:
        FileNotFoundError: the folder is no such checkpoint.
        ValueError: the checkpoint holds no such state, or not every worker's, or a file is damaged or hostile.
    """
    names = (_RANK.match(name) for name in names_in(checkpoint, "gaussiank/"))
    saved = sorted({int(found[1]) for found in names if found})
    if not saved:
        raise ValueError(f"checkpoint must hold a compression state, got {checkpoint} without one. Save shards() too.")
    if saved != list(range(len(saved))):
        raise ValueError(
            f"checkpoint must hold every worker's state, got those of ranks {saved}. Save shards() on every worker."
        )
    wanted = (rank,) if len(saved) == world_size else sources(rank, world_size, len(saved))
    states = [unpack(read(checkpoint, _WORKER.format(source)), _WORKER.format(source)) for source in wanted]
    return states[0] if len(saved) == world_size else reshard(states, rank, world_size)


def names_in(checkpoint: str | Path, prefix: str) -> tuple[str, ...]:
    """Name the tensors of a distributed checkpoint whose names start with ``prefix``."""
    return tuple(entries(checkpoint, prefix))


def read(checkpoint: str | Path, prefix: str) -> dict[str, Tensor]:
    """Read all tensors below ``prefix`` of a distributed checkpoint, on this worker alone; nothing in it is run.

    Raises:
        FileNotFoundError: the folder is no such checkpoint.
        ValueError: a file is damaged, or not as torch writes it; names it.
    """
    return {name: entry.read() for name, entry in entries(checkpoint, f"{prefix}/").items()}


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Move large tensors from a nested value into ``tensors``; a tuple marks their names, and other tuples."""
    if isinstance(value, Tensor) and value.numel() >= _SMALL:
        if name in tensors:
            raise ValueError(f"names in a state must differ once joined by /, got {name!r} twice. Rename one.")
        tensors[name] = value.detach()
        return ("tensor", name)
    if isinstance(value, Mapping):
        return {key: _without_tensors(item, f"{name}/{key}", tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_without_tensors(item, f"{name}/{index}", tensors) for index, item in enumerate(value)]
        return ("tuple", items) if isinstance(value, tuple) else items
    return value


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, tuple):
        kind, marked = value
        return tensors[marked] if kind == "tensor" else tuple(_with_tensors(item, tensors) for item in marked)
    if isinstance(value, dict):
        return {key: _with_tensors(item, tensors) for key, item in value.items()}
    return [_with_tensors(item, tensors) for item in value] if isinstance(value, list) else value
