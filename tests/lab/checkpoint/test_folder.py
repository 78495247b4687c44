from __future__ import annotations

from pathlib import Path

import pytest

from gaussiank_lab.checkpoint import CheckpointFolder, Place
from gaussiank_lab.checkpoint.format import MANIFEST_NAME


def write(folder: CheckpointFolder, place: Place, method: str = "topk", text: str = "{}") -> Path:
    unfinished = folder.begin(place, method)
    (unfinished / MANIFEST_NAME).write_text(text)
    return folder.publish(unfinished)


def names(folder: CheckpointFolder) -> list[str]:
    return [path.name for path in folder.whole().values()]


def test_order_is_that_of_methods_then_steps(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "c")
    assert folder.last() is None
    for place, method in ((Place(1, 5), "randomk:feedback=false"), (Place(0, 20), "topk"), (Place(0, 100), "topk")):
        write(folder, place, method)
    assert names(folder) == ["00-topk-step-00000020", "00-topk-step-00000100", "01-randomk-step-00000005"]
    last = folder.last()
    assert last is not None
    assert last.name == "01-randomk-step-00000005"


def test_what_a_crash_leaves_does_not_count_and_is_cleared(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    whole = write(folder, Place(0, 1))
    half = folder.begin(Place(0, 2), "topk")
    (half / "shared.pt").write_text("half")
    (tmp_path / "00-topk-step-00000003").mkdir()  # without a manifest
    (tmp_path / "notes").mkdir()
    assert list(folder.whole().values()) == [whole]
    folder.prune(keep=1)
    assert not half.exists()
    assert (tmp_path / "notes").exists()
    again = folder.begin(Place(0, 2), "topk")
    assert not list(again.iterdir())


def test_only_the_last_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for step in range(1, 6):
        write(folder, Place(0, step))
        folder.prune(keep=2)
    assert names(folder) == ["00-topk-step-00000004", "00-topk-step-00000005"]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_checkpoint_written_again_takes_the_place_of_the_first(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    write(folder, Place(0, 1), text="first")
    assert (write(folder, Place(0, 1), text="second") / MANIFEST_NAME).read_text() == "second"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_lock_is_free_again_afterwards(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    with (
        folder.locked(),
        pytest.raises(RuntimeError, match=r"^checkpoint_dir must not be in use"),
        CheckpointFolder(tmp_path).locked(),
    ):
        pass
    with folder.locked():
        assert folder.last() is None
