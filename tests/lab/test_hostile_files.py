"""Files that mean harm: whatever a command reads, nothing in it is run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gaussiank_lab.checkpoint import FORMS, Manifest
from gaussiank_lab.cluster.probe_file import read_probe
from gaussiank_lab.data.image_files import read_batch
from gaussiank_lab.report.records import read_records
from gaussiank_lab.study.study import read_study
from gaussiank_lab.study.vectors import snapshots


class Harm:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch harmed",)


def test_nothing_that_a_command_reads_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"step": 1, "compression": Harm()}, tmp_path / "shared.pt")
    pickled = (tmp_path / "shared.pt").read_bytes()
    (tmp_path / "worker-00000.pt").write_bytes(pickled)
    (tmp_path / "vectors").mkdir()
    np.savez(tmp_path / "vectors" / "step-00000001.npz", head=np.array(Harm(), dtype=object))
    plain = pickle.dumps({"kind": "run", "format": 1, "data": Harm()})
    for name in ("records.jsonl", "gradients.jsonl", "manifest.json", "probe.json", "data_batch_1"):
        (tmp_path / name).write_bytes(plain)
    (tmp_path / "dcp").mkdir()
    (tmp_path / "dcp" / ".metadata").write_bytes(plain)
    readers: list[Callable[[], Any]] = [
        lambda: FORMS["plain"].read_shared(tmp_path),
        lambda: FORMS["plain"].read_own(tmp_path, 0),
        lambda: FORMS["dcp"].read_shared(tmp_path / "dcp"),
        lambda: FORMS["dcp"].read_own(tmp_path / "dcp", 0),
        lambda: snapshots(tmp_path),
        lambda: read_records(tmp_path),
        lambda: read_study(tmp_path),
        lambda: Manifest.read(tmp_path),
        lambda: read_probe(tmp_path / "probe.json"),
        lambda: read_batch(tmp_path / "data_batch_1"),
    ]
    for reader in readers:
        with pytest.raises(ValueError, match=str(tmp_path)):
            reader()
    assert not (tmp_path / "harmed").exists()
