"""The Python blocks of the pages that import the lab run; ``tests/test_docs.py`` runs the others."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.test_docs import cases, no_process_group, run_block

__all__ = ["no_process_group"]  # a fixture


@pytest.mark.usefixtures("no_process_group")
@pytest.mark.parametrize(("page", "line", "code"), cases(lab=True))
def test_block_runs(page: Path, line: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_block(page, line, code, tmp_path, monkeypatch)
