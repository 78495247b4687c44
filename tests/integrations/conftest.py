"""Two workers of a real framework: each framework's whole file of tests is one start of processes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def added_lines(framework: str) -> list[str]:
    """Return the lines that docs/frameworks.md adds to a user's script."""
    page = (ROOT / "docs" / "frameworks.md").read_text(encoding="utf-8")
    section = page.split(f"\n## {framework}\n")[1].split("\n## ")[0]
    found = re.search(r"```diff\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return [line[2:] for line in found[1].splitlines() if line.startswith("+ ")]


@pytest.fixture
def two_processes(tmp_path: Path) -> Callable[[str, str], list[dict[str, Any]]]:
    """Return what runs ``FRAMEWORK_worker.py`` in two processes, and returns what each has found."""

    def run(package: str, framework: str) -> list[dict[str, Any]]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: make setup brings it, make core does without")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {
            **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "ADDED": "\n".join(added_lines(framework)),
        }  # fmt: skip
        script = HERE / f"{package}_worker.py"
        workers = [
            subprocess.Popen(
                [sys.executable, str(script), str(tmp_path)],
                env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(2)
        ]
        outputs = [worker.communicate(timeout=240)[0] for worker in workers]
        for rank, (worker, output) in enumerate(zip(workers, outputs, strict=True)):
            if worker.returncode:
                pytest.fail(f"rank {rank}:\n{output[-6000:]}", pytrace=False)
        return [json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in range(2)]

    return run
