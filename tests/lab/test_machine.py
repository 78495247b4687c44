from __future__ import annotations

import datetime
import subprocess
from pathlib import Path

import pytest

import gaussiank
from gaussiank_lab import machine


def git(place: Path, *command: str) -> None:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    subprocess.run(("git", *identity, *command), cwd=place, check=True, capture_output=True)


def test_commit_is_that_of_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "src" / "__init__.py"
    source.parent.mkdir()
    source.write_text("")
    monkeypatch.setattr(gaussiank, "__file__", str(source))
    assert machine.commit() is None  # no repository
    git(tmp_path, "init", "-q")
    assert machine.commit() is None  # no commit
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "first")
    assert machine.commit() is None  # the source is not in it: another project's repository
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "second")
    clean = machine.commit()
    assert clean is not None
    assert len(clean) >= 7
    source.write_text("changed")
    assert machine.commit() == clean + "+"


def test_no_git_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert machine.commit() is None


def test_origin_says_when_and_where() -> None:
    origin = machine.origin()
    made = datetime.datetime.fromisoformat(str(origin["date"]))
    assert abs((datetime.datetime.now(datetime.timezone.utc) - made).total_seconds()) < 60
    assert origin["machine"] == machine.cpu_name() != ""
    assert origin["gaussiank"] == gaussiank.__version__
