from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from tests.each import each

from gaussiank import ops
from gaussiank_lab.bench import ops as opsrun
from gaussiank_lab.bench.ops import OpsBench, OpsConfig, OpsSetting, require_memory
from gaussiank_lab.bench.rows import Row


def test_one_list_of_rows_for_each_setting(
    settings_of_rows: list[list[Row]], fast_config: OpsConfig, backends: tuple[str, ...]
) -> None:
    assert len(settings_of_rows) == fast_config.settings == 8
    order = [(rows[0]["numel"], rows[0]["law"], rows[0]["density"]) for rows in settings_of_rows]
    assert order == [(n, law, rho) for n in (2000, 20_000) for law in ("normal", "uniform") for rho in (0.01, 0.1)]
    for rows in settings_of_rows:
        assert [row["operator"] for row in rows if row["kind"] == "ceiling"] == ["add in place", "copy"]
        found = [(row["operator"], row["backend"], row["state"]) for row in rows if row["kind"] == "operator"]
        assert len(found) == len(set(found)) == 4 * len(backends) + 2
        assert {backend for name, backend, _ in found if name == "topk"} == set(backends)


def test_rows_tell_all_about_themselves(rows: list[Row]) -> None:
    common = {"kind", "operator", "family", "backend", "numel", "law", "density", "k", "dtype", "threads", "repeats"}
    common |= {"machine", "cores", "system", "load", "date", "commit", "gaussiank", "torch"}
    common |= {"seconds", "seconds_low", "seconds_high", "of_ceiling", "gb_per_s"}
    for row in rows:
        own = {"state", "kept", "kept_over_k", "recall"} if row["kind"] == "operator" else set()
        assert set(row) == common | own
        assert row["threads"] == torch.get_num_threads()
        assert row["repeats"] == 6  # small vectors are measured three times as often
        assert 0 < row["seconds_low"] <= row["seconds"] <= row["seconds_high"]
        moved = 8 if row["operator"] == "copy" else 12
        assert row["gb_per_s"] == pytest.approx(moved * row["numel"] / row["seconds"] / 1e9)
        if row["operator"] == "add in place":
            assert row["of_ceiling"] == 1.0


def test_counts_and_recall_are_those_of_the_rule(rows: list[Row]) -> None:
    for row in rows:
        if row["operator"] in ("topk", "torch.topk"):
            assert (row["kept"], row["kept_over_k"], row["recall"]) == (row["k"], 1.0, 1.0)
        if row["operator"] == "gaussiank":
            band = (0.6, 1.4) if row["k"] >= 32 else (1.0, 1.0)
            assert band[0] <= row["kept_over_k"] <= band[1]
            assert row["recall"] == pytest.approx(min(1.0, row["kept_over_k"]))
    uniform = [row for row in rows if row["operator"] == "published Gaussian_k" and row["law"] == "uniform"]
    assert min(row["kept_over_k"] for row in uniform) < 0.5 or max(row["kept_over_k"] for row in uniform) > 1.5


def test_every_round_is_reported(fast_config: OpsConfig) -> None:
    seen: list[OpsSetting] = []
    config = OpsConfig(sizes=(1000,), densities=(0.1,), laws=("normal",), names=("torch.topk",), repeats=2)
    list(OpsBench(config, seen.append).run())
    assert seen == [OpsSetting(1000, "normal", 0.1)] * 7
    assert str(seen[0]) == "1e3 normal 0.1"


def test_threads_and_backend_are_put_back() -> None:
    before = torch.get_num_threads(), ops.backends().active
    wanted = 1 if before[0] > 1 else 2
    config = OpsConfig(sizes=(1000,), laws=("normal",), names=("topk",), backends=("reference",), threads=wanted)
    run = OpsBench(config).run()
    rows = next(run)
    assert {row["threads"] for row in rows} == {wanted}
    assert {row["backend"] for row in rows if row["family"] == "ours"} == {"reference"}
    run.close()  # as after Ctrl-C
    assert (torch.get_num_threads(), ops.backends().active) == before


def test_slow_operators_are_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    config = OpsConfig(
        sizes=(1000, 2000), densities=(0.1,), laws=("normal",), names=("torch.topk",), repeats=2, budget_s=1e-9
    )
    for rows in OpsBench(config).run():
        (row,) = (row for row in rows if row["family"] == "peer")
        assert row["kind"] == "skipped"
        assert re.fullmatch(r"6 runs need about 0 s", row["reason"])
        assert "seconds" not in row


def test_what_a_smaller_size_shows_to_be_slow_is_not_even_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = OpsBench(OpsConfig(sizes=(2000,), densities=(0.1,), laws=("normal",), names=("torch.topk",), repeats=2))
    bench._speed["torch.topk", "torch", "stateless"] = 1.0  # seconds an entry
    ran: list[int] = []
    take = opsrun.OperatorRun._run
    monkeypatch.setattr(opsrun.OperatorRun, "_run", lambda self, turn: (ran.append(turn), take(self, turn)))
    (rows,) = bench.run()
    assert rows[-1]["reason"] == "6 runs would need about 12000 s"
    assert ran == []


@each(
    ("settings", "sentence"),
    [
        ({"sizes": (999,)}, "sizes must be in [1000, 2147483647], got 999. Give sizes such as 1e5,1e6,1e7."),
        ({"sizes": ()}, "sizes must name at least one, got none. Leave the option out for all."),
        ({"densities": (0.0,)}, "densities must be in (0, 1], got 0.0. Give shares such as 0.001,0.01."),
        ({"laws": ("cauchy",)}, "laws must be among normal, laplace, student-t3, uniform, triangular, residual, got"),
        ({"names": ("topkk",)}, "operators must be among topk, gaussiank,"),
        ({"backends": ("cuda",)}, "backends must be among reference"),
        ({"repeats": 0}, "repeats must be at least 1, got 0. A median wants 7 or more."),
        ({"budget_s": 0.0}, "budget must be above 0 s, got 0.0. Leave it out for 20 s."),
        ({"threads": 0}, "threads must be at least 1, got 0. Leave it out to keep torch's number."),
    ],
)
def test_refuses_what_cannot_be_measured(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(sentence)):
        OpsConfig(**settings)


def test_refuses_vectors_that_do_not_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    require_memory(OpsConfig(sizes=(1000,)))
    monkeypatch.setattr(opsrun.os, "sysconf", lambda name: 1000)
    with pytest.raises(
        ValueError, match=r"^sizes must fit into 0\.0 GB of free memory at 48 bytes an entry, got 1e\+06"
    ):
        require_memory(OpsConfig(sizes=(1000, 1_000_000)))
