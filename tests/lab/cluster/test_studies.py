from __future__ import annotations

from pathlib import Path

from gaussiank_lab.cluster.figures import gain_figure, save, scale_figure
from gaussiank_lab.cluster.studies import gain_rows, regions, scale_rows


def test_gain_falls_with_bandwidth_to_a_loss() -> None:
    rows = gain_rows([1e9, 1e11, 1e13], [10**6, 10**8], [16])
    for numel in (10**6, 10**8):
        gains = [row.gain for row in rows if row.numel == numel]
        assert gains[0] > gains[1] > gains[2]
        assert gains[0] > 5
        assert gains[2] < 1.05


def test_twenty_regions_hold_ten_thousand_workers() -> None:
    cluster = regions(1e9)
    assert cluster.most_workers == 10_000
    assert [(level.members, level.inside) for level in cluster.levels(10_000)] == [(4, 1), (125, 4), (20, 500)]


def test_efficiency_rises_with_local_steps_and_bandwidth_and_falls_with_density() -> None:
    rows = scale_rows(10**8, [1e8, 1e9], [1, 100])
    found = {(row.method, row.bandwidth_bits_s, row.every): row.efficiency for row in rows}
    for method in ("dense bf16", "topk 0.01", "topk 0.001"):
        for rate in (1e8, 1e9):
            assert found[method, rate, 100] > found[method, rate, 1]
        assert found[method, 1e9, 100] > found[method, 1e8, 100]
    assert found["topk 0.001", 1e8, 100] > found["topk 0.01", 1e8, 100] > found["dense bf16", 1e8, 100]
    assert max(found.values()) < 1 / 1.2  # the slow workers decide


def test_figures_are_the_same_bytes_again(tmp_path: Path) -> None:
    gains, scale = gain_rows([1e9, 1e11], [10**6, 10**8], [16]), scale_rows(10**8, [1e9], [1, 100])
    for number, make in enumerate((lambda: gain_figure(gains), lambda: scale_figure(scale))):
        first, again = (save(make(), tmp_path / f"{number}-{name}.svg") for name in "ab")
        assert first.read_bytes() == again.read_bytes()
        assert first.stat().st_size > 5000
