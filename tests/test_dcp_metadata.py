"""Checkpoints of torch.distributed.checkpoint that mean harm, or are damaged, or were written by an older torch."""

from __future__ import annotations

import enum
import io
import os
import pickle
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_saver import save

from gaussiank import checkpoint
from gaussiank.dcp_metadata import entries

NAME = "gaussiank/worker-00000"
STATE: dict[str, Any] = {
    "format": 1,
    "rank": 0,
    "residual": {"w": torch.arange(3000.0), "h": torch.ones(1200, dtype=torch.bfloat16)},
}


@pytest.fixture(autouse=True)
def _world_of_one(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Harm:
    """Calls something when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def saved(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its own files
        others = {"model": {"weight": torch.zeros(4, 3), "epoch": 3}, "optimizer": [("adam", torch.ones(()))]}
        save({**checkpoint.pack(STATE, NAME), **others}, storage_writer=FileSystemWriter(folder))
    return folder


def rewritten(folder: Path, change: Any) -> None:
    """Write the list of contents anew, after a change to it."""
    metadata = FileSystemReader(folder).read_metadata()
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError, match=re.escape(f"{folder}/")) as caught:
        checkpoint.load_shards(folder, 0, 1)
    return str(caught.value)


def test_what_torch_has_written_is_read(tmp_path: Path) -> None:
    folder = saved(tmp_path / "c")
    state = checkpoint.load_shards(folder, 0, 1)
    assert torch.equal(state["residual"]["w"], STATE["residual"]["w"])
    assert torch.equal(state["residual"]["h"], STATE["residual"]["h"])
    assert (state["format"], state["rank"]) == (1, 0)
    assert sorted(entries(folder, "")) == [f"{NAME}/residual/h", f"{NAME}/residual/w", f"{NAME}/rest", "model.weight"]


class _ByName(pickle.Pickler):
    """Writes a member of an Enum as Python 3.11's first releases do."""

    def reducer_override(self, value: Any) -> Any:
        return (getattr, (type(value), value.name)) if isinstance(value, enum.Enum) else NotImplemented


def test_every_way_of_pickling_is_read(tmp_path: Path) -> None:
    folder = saved(tmp_path / "c")
    metadata = FileSystemReader(folder).read_metadata()
    ways = [pickle.dumps(metadata, protocol=protocol) for protocol in range(2, 6)]
    by_name = io.BytesIO()
    _ByName(by_name).dump(metadata)
    assert b"getattr" in by_name.getvalue()
    for data in (*ways, by_name.getvalue()):
        (folder / ".metadata").write_bytes(data)
        assert len(checkpoint.names_in(folder, NAME)) == 3


def test_nothing_in_a_list_of_contents_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = saved(tmp_path / "c")
    metadata = FileSystemReader(folder).read_metadata()
    harms = {
        "posix.system": Harm(os.system, "touch harmed"),
        "builtins.eval": Harm(eval, "open('harmed', 'w')"),
        "torch.serialization.load": Harm(torch.load, "secret"),
        "builtins.setattr": Harm(setattr, Metadata, "version", 1),
    }
    for field in ("planner_data", "storage_data", "storage_meta", "version"):
        for asked, harm in harms.items():
            changed = Metadata(**{**vars(metadata), field: harm})
            (folder / ".metadata").write_bytes(pickle.dumps(changed))
            assert f"(it asks for {asked}, which no list of tensors needs)" in refusal(folder)
    assert not (tmp_path / "harmed").exists()


def test_nothing_in_a_tensor_of_a_checkpoint_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = saved(tmp_path / "c")
    torch.save(Harm(os.system, "touch harmed"), folder / "harm")

    def point_to_it(metadata: Metadata) -> None:
        for place in metadata.storage_data.values():
            place.relative_path, place.offset, place.length = "harm", 0, (folder / "harm").stat().st_size

    rewritten(folder, point_to_it)
    assert "as torch.save writes tensors and plain values" in refusal(folder)
    assert not (tmp_path / "harmed").exists()


def test_a_list_that_lies_is_refused(tmp_path: Path) -> None:
    def with_place(**fields: Any) -> Any:
        return lambda metadata: [vars(place).update(fields) for place in metadata.storage_data.values()]

    def resized(metadata: Metadata) -> None:
        metadata.state_dict_metadata[f"{NAME}/residual/w"].size = torch.Size([3, 1000])  # type: ignore[union-attr]

    cases = [
        (with_place(relative_path="../secret"), "lies in '../secret', outside the folder"),
        (with_place(relative_path="/etc/passwd"), "outside the folder"),
        (with_place(relative_path="gone"), "no such bytes"),
        (with_place(length=1 << 60), "no such bytes"),
        (with_place(offset=-1), "has no dtype, size or place"),
        (with_place(transform_descriptors=["zstd"]), "does not lie in plain pieces"),
        (resized, "does not lie in plain pieces"),
        (lambda metadata: metadata.storage_data.clear(), "an error (KeyError)"),
    ]
    for index, (change, sentence) in enumerate(cases):
        folder = saved(tmp_path / str(index))
        rewritten(folder, change)
        assert sentence in refusal(folder)
    for index, data in enumerate((b"", b"no pickle", pickle.dumps([1, 2]), pickle.dumps(torch.float32))):
        folder = saved(tmp_path / f"bytes{index}")
        (folder / ".metadata").write_bytes(data)
        assert "must be what torch.distributed.checkpoint writes, got an error (" in refusal(folder)
    with pytest.raises(FileNotFoundError, match=r"^checkpoint must be a folder that torch.distributed"):
        checkpoint.load_shards(tmp_path, 0, 1)
