from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def test_no_folder_of_tests_is_passed_over(pytestconfig: pytest.Config) -> None:
    """Pytest does not look into folders of certain names, ``dist`` and ``build`` among them, and says nothing."""
    folders = {name for path in TESTS.rglob("test_*.py") for name in path.relative_to(TESTS).parts[:-1]}
    patterns = pytestconfig.getini("norecursedirs")
    assert "distributed" in folders
    assert not [name for name in folders if any(fnmatch(name, pattern) for pattern in patterns)]


def test_what_one_half_of_make_test_leaves_out_the_other_runs() -> None:
    recipes = (TESTS.parent / "Makefile").read_text(encoding="utf-8")
    unit, lab = (re.search(rf"^{name}: .*\n\t(.*)", recipes, re.MULTILINE) for name in ("unit", "lab"))
    assert unit
    assert lab
    left_out = re.findall(r"--ignore (\S+)", unit[1])
    assert left_out
    assert set(left_out) <= set(lab[1].split())
