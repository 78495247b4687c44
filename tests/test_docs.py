"""Every Python block of README.md, docs/*.md and results/*.md runs, unless it says ``# not run``.

Blocks that import the lab are run by ``tests/lab/test_docs.py``, the others here, with the library alone.
"""

from __future__ import annotations

import os
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
CHRONICLES = ("LOG.md", "CHANGELOG.md")
MOST_WORDS = 1200
PAGES = [
    ROOT / "README.md",
    *(page for folder in ("docs", "results") for page in sorted((ROOT / folder).rglob("*.md"))),
]
BLOCK = re.compile(r"^(?P<indent> *)```python[^\n]*\n(?P<code>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> Iterator[tuple[int, str]]:
    """Yield the line of each block's first statement, and the block as it is, without its indentation."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        indent, code = found["indent"], found["code"]
        if "# not run" not in code:
            lines = [line.removeprefix(indent) for line in code.splitlines()]
            yield text.count("\n", 0, found.start()) + 2, "\n".join(lines) + "\n"


def cases(lab: bool) -> list[Any]:
    """Return page, line and code of the blocks that import the lab, or of the others."""
    return [
        pytest.param(page, line, code, id=f"{page.relative_to(ROOT).as_posix()}:{line}")
        for page in PAGES
        if page.is_file()
        for line, code in blocks(page)
        if ("gaussiank_lab" in code) == lab
    ]


def test_readme_exists() -> None:
    assert (ROOT / "README.md").is_file()


@pytest.fixture
def no_process_group() -> Iterator[None]:
    """Close the process group that a block leaves open, and take back the environment that it set for it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    if "torch.distributed" in sys.modules:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


@pytest.mark.usefixtures("no_process_group")
@pytest.mark.parametrize(("page", "line", "code"), cases(lab=False))
def test_block_runs(page: Path, line: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_block(page, line, code, tmp_path, monkeypatch)


def run_block(page: Path, line: int, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("__main__")  # dataclasses and pickle look their module up by name
    monkeypatch.setitem(sys.modules, "__main__", module)
    exec(compile("\n" * (line - 1) + code, str(page), "exec"), vars(module))  # errors show the line of the page


def words_of(text: str) -> int:
    """Return the number of words of prose: outside code blocks and tables."""
    prose, fence = 0, ""
    for line in map(str.strip, text.splitlines()):
        if fence:
            fence = "" if line == fence else fence
        elif line.startswith("```"):
            fence = line[: len(line) - len(line.lstrip("`"))]
        elif not line.startswith("|"):
            prose += len(line.split())
    return prose


def test_no_page_is_too_long_to_be_read() -> None:
    """But chronicles, which are looked things up in. Move measurements to results/, or a second concept to a page."""
    pages = [*PAGES, *(page for page in ROOT.glob("*.md") if page.name not in CHRONICLES)]
    words = {page.relative_to(ROOT).as_posix(): words_of(page.read_text(encoding="utf-8")) for page in pages}
    assert len(words) > 30
    assert {page: count for page, count in words.items() if count > MOST_WORDS} == {}


def test_words_are_those_of_prose() -> None:
    assert words_of("# A title\n\nOne [link](to.md).\n\n```python\nx = 1\n```\n\n| a | b |\n|---|---|\n- item\n") == 7


def test_blocks_are_found_with_their_lines(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n\n```python\nx = 1\n\ny = 2\n```\n\n```bash\nls\n```\n\n"
        '- item\n\n  ```python title="b"\n  if x:\n      pass\n  ```\n\n```python\n# not run\nz\n```\n',
        encoding="utf-8",
    )
    assert list(blocks(page)) == [(4, "x = 1\n\ny = 2\n"), (16, "if x:\n    pass\n")]
