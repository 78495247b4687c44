"""The list of what a checkpoint holds, written last: without it there is no checkpoint."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gaussiank.durable import sha256_of, write_whole

FORMAT = 1
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class Part:
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
    parts: tuple[Part, ...] = field(default=())
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
        return cls(**{**content, "parts": tuple(Part(**part) for part in content["parts"])})

    def require_whole(self, folder: Path, parts: tuple[Part, ...] | None = None) -> None:
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
