"""Where and when a measurement was made, so that its number can be judged."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import subprocess
from pathlib import Path

import gaussiank


def cpu_name() -> str:
    """Return the processor's own name for itself."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """Return the short hash of the source's commit, with ``+`` when files differ from it; None outside of git."""
    here = Path(gaussiank.__file__).parent
    try:
        found = _git(here, "rev-parse", "--short", "HEAD")
        tracked = _git(here, "ls-files", "--error-unmatch", "__init__.py")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return (found + "+" * bool(changed)) if tracked else None


def _git(place: Path, *command: str) -> str:
    done = subprocess.run(("git", *command), cwd=place, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def origin() -> dict[str, object]:
    """Return what every row says of its making: machine, cores, date, commit and versions."""
    import torch

    return {
        "machine": cpu_name(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "gaussiank": gaussiank.__version__,
        "torch": str(torch.__version__),
    }
