from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_notebook_runs_and_holds_what_it_prints() -> None:
    path = ROOT / "examples" / "gradients.ipynb"
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [1, 2, 3, 4]
    assert path.stat().st_size < 100_000
    command = [sys.executable, str(ROOT / "scripts" / "run_notebook.py"), str(path)]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # its threads would wait for those of other tests
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=alone)
    assert done.returncode == 0, done.stderr
    held = [line for cell in cells for output in cell["outputs"] for line in output.get("text", [])]
    assert held[0] in done.stdout
    assert done.stdout.count("(a figure)") == 1
    assert len(held) == len(done.stdout.splitlines()) - 1
