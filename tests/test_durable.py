from __future__ import annotations

import hashlib
import resource
from pathlib import Path

import pytest
import torch

from gaussiank.durable import HashingFile, publish_folder, sha256_of, write_whole


def test_hashing_file_knows_its_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000
    with HashingFile(tmp_path / "a") as file:
        for start in range(0, len(data), 70_001):
            file.write(data[start : start + 70_001])
    assert (tmp_path / "a").read_bytes() == data
    assert file.size_bytes == len(data)
    assert file.sha256 == sha256_of(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_torch_saves_into_it(tmp_path: Path) -> None:
    with HashingFile(tmp_path / "a.pt") as file:
        torch.save({"x": torch.arange(5000)}, file)  # type: ignore[arg-type]  # it only writes
    assert file.sha256 == sha256_of(tmp_path / "a.pt")
    assert torch.equal(torch.load(tmp_path / "a.pt", weights_only=True)["x"], torch.arange(5000))


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    with pytest.raises(FileExistsError), HashingFile(tmp_path / "a"):
        pass
    assert (tmp_path / "a").read_text() == "mine"


def test_a_full_disk_is_the_error_that_is_raised(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: .*a.pt'$"), HashingFile(tmp_path / "a.pt") as file:
            torch.save({"x": torch.ones(50_000)}, file)  # type: ignore[arg-type]  # it only writes
        with pytest.raises(OSError, match=r"File too large: .*/b'$"):
            write_whole(tmp_path / "b", bytes(50_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "b").exists()


def test_write_whole_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", b"old")
    write_whole(tmp_path / "a", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"new")]


def test_publish_takes_the_place_of_what_had_the_name(tmp_path: Path) -> None:
    for name, text in (("a", "old"), (".a", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text").write_text(text)
    publish_folder(tmp_path / ".a", tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "text").read_text() == "new"
