"""The script behind ``make kills``, for one kill; ``test_survival.py`` has those at chosen moments."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "kill_and_resume.py"


@pytest.mark.timeout(600)  # three starts of three processes: a busy machine takes minutes
def test_a_run_killed_at_a_random_moment_ends_with_the_same_bits() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--count", "1", "--seed", "3", "--resumable"],
        capture_output=True,
        text=True,
        timeout=560,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"killed, resumed from 0\d-(topk|gaussiank)-step-\d+; the same bits", done.stdout)
    assert done.stdout.endswith("1 runs killed and resumed, each to the same bits\n")
