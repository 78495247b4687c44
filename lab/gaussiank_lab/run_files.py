"""Where a run writes, and what it had written there by a checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

from gaussiank_lab.checkpoint import Resume
from gaussiank_lab.records import RECORDS_NAME, written_before
from gaussiank_lab.study.study import STUDY_NAME


def records_of(resume: Resume) -> bytes:
    """Return the records that a run had written by its checkpoint; none when its directory is gone.

    Raises:
        ValueError: they are not what they were.
    """
    manifest = resume.manifest
    return written_before(resume.run_dir / RECORDS_NAME, manifest.records_bytes, manifest.records_crc32)


def study_of(resume: Resume) -> bytes:
    """Return what a run had recorded of its gradients by its checkpoint; nothing when that is gone or there was none.

    Raises:
        ValueError: it is not what it was.
    """
    study, method = resume.manifest.study, resume.manifest.method
    if study is None:
        return b""
    return written_before(study_dir(resume.run_dir, method) / STUDY_NAME, study["size_bytes"], study["crc32"])


def study_dir(run_dir: Path, method: str) -> Path:
    """Return where the gradients of one method are recorded.

    Example:
        >>> study_dir(Path("runs/one"), "gaussiank:mode=published").as_posix()
        'runs/one/gaussiank-mode=published'
    """
    return run_dir / re.sub(r"[^A-Za-z0-9=._]+", "-", method)
