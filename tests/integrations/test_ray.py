"""The recipe of docs/frameworks.md for Ray Train, with two workers of which one is killed. Ray is in no requirement."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def test_the_recipe_survives_a_killed_worker(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "frameworks.md").read_text(encoding="utf-8")
    recipe = re.search(r"```python\n(.*?)```", page.split("\n## Ray Train\n")[1], re.DOTALL)
    assert recipe is not None
    compile(recipe[1], "docs/frameworks.md", "exec")
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'ray[train]' and run this file")
    done = subprocess.run(
        [sys.executable, str(HERE / "ray_worker.py"), str(tmp_path), recipe[1]],
        env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["was killed"]
    assert found["killed"] == found["whole"]
    assert found["killed waits"] == found["whole waits"] > 0
