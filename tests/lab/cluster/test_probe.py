"""One real probe of two workers, and what the other commands make of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.each import each

from gaussiank.compressors import COMPRESSORS
from gaussiank_lab.cluster.advice import advise, all_methods
from gaussiank_lab.cluster.probe import require_measurable
from gaussiank_lab.cluster.probe_file import Probe, read_probe
from gaussiank_lab.cluster.scenario import resolve
from gaussiank_lab.sim import predict


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("probe") / "probe.json"
    arguments = ["probe", "--model", "fnn3", "--workers", "2", "--quick", "--out", str(path)]
    done = subprocess.run(
        [sys.executable, "-m", "gaussiank", *arguments], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return path, done.stdout


@pytest.fixture
def probe(probed: tuple[Path, str]) -> Probe:
    return read_probe(probed[0], "fnn3")


def test_measures_the_model_in_ddps_buckets(probe: Probe) -> None:
    assert sum(numel for numel, _ in probe.buckets) == 199_210
    assert probe.workers == probe.workers_per_node == 2
    assert min(probe.forward_s, probe.optimizer_s, *(seconds for _, seconds in probe.buckets)) > 0
    assert 0 <= probe.contention <= 1


def test_measures_every_collective_and_compressor(probe: Probe) -> None:
    assert set(probe.links) == {"all_reduce", "all_gather", "all_to_all", "broadcast"}
    assert set(probe.select) == set(COMPRESSORS) - {"dense"}
    assert set(probe.exchanges) == {"allgather", "split", "leader", "tree"}
    assert set(probe.curves) == {"encode", "decode", "merge", "clear", "cast"}
    for points in (*probe.links.values(), *probe.select.values(), *probe.curves.values(), *probe.exchanges.values()):
        assert min(seconds for _, seconds in points) > 0
        assert max(seconds for _, seconds in points) < 10


def test_file_is_small_and_versioned(probed: tuple[Path, str]) -> None:
    path, printed = probed
    assert path.stat().st_size < 10_000
    fields = json.loads(path.read_text())
    assert (fields["kind"], fields["format"]) == ("gaussiank probe", 2)
    assert f"Next: gaussiank advise --probe {path}" in printed


def test_simulation_and_advice_take_it(probed: tuple[Path, str]) -> None:
    setting = resolve(None, probed[0], None)
    rows = predict(setting.scenario, all_methods(0.01, accelerator=False), [1, 2, 16], steps=2)
    assert all(row.step_s > 0 for row in rows)
    assert advise(setting, 2).gain > 0


@each(
    ("arguments", "sentence"),
    [
        (("gpt9", 32, 2, "cpu"), "model must be one of fnn3, "),
        (("fnn3", 0, 2, "cpu"), "batch_size must be at least 1, got 0. "),
        (("fnn3", 32, 0, "cpu"), "workers must be at least 1, got 0. "),
        (("fnn3", 32, 2, "tpu"), "device must be cpu or cuda, got 'tpu'. "),
    ],
)
def test_mistakes_are_named_before_workers_start(arguments: tuple[str, int, int, str], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the sentence is compared
        require_measurable(*arguments)
    assert str(caught.value).startswith(sentence)
