"""Settings that can be measured, and what a run gives."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest

from gaussiank_lab.bench.net import run as netrun
from gaussiank_lab.bench.net.exchanges import Spent
from gaussiank_lab.bench.net.links import missing, parse_rate
from gaussiank_lab.bench.net.methods import NetMethod, parse_method
from gaussiank_lab.bench.net.run import NetBench, NetConfig, NetSetting, Ranks, possible
from gaussiank_lab.bench.net.training import StepRow, Trainer, Window, parse_workload
from gaussiank_lab.bench.rows import Row

LENET5 = 61_706
needs_namespaces = pytest.mark.skipif(missing() is not None, reason=f"{missing()}")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"models": ()}, "models must name at least one"),
        ({"workers": ()}, "workers must be at least one number"),
        ({"workers": (65,)}, r"workers must be in \[1, 64\], got 65"),
        ({"density": 0.0}, r"density must be in \(0, 1\], got 0.0"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"warm": 2}, "warm must be at least 3, got 2"),
        ({"budget_s": 0.0}, "budget_s must be above 0"),
        ({"rates": ("fast",)}, "rates must be"),
        ({"models": ("vector:1e4",), "methods": ("ddp-powersgd",)}, "methods of a vector must exchange a vector"),
        ({"models": ("vector:1e4",), "until_loss": 1.0}, "until_loss must be left out for a vector"),
    ],
)
def test_what_cannot_be_measured_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        NetConfig(**settings)


def test_without_root_it_says_so_and_runs_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netrun, "missing", lambda: "network namespaces need root")
    rates, sentence = possible([parse_rate("20mbit"), parse_rate("1gbit")])
    assert [rate.name for rate in rates] == ["loopback"]
    assert sentence == "Not measured at 20mbit, 1gbit, only on loopback: network namespaces need root."
    assert possible([parse_rate("loopback")])[1] is None


def test_every_method_is_measured_in_every_round(rows: list[Row]) -> None:
    assert [row["method"] for row in rows][:2] == ["alone", "ddp"]
    for row in rows:
        assert (row["workers"], row["rate"], row["numel"], row["rounds"]) == (2, "loopback", LENET5, 2)
        assert 2 <= row["steps"] <= 4
        assert len(row["round_step_s"]) == 2
        assert 0 < row["step_low_s"] <= row["step_s"] <= row["step_high_s"]
        assert 0 < row["forward_s"] + row["backward_s"] + row["optimizer_s"] < 1.5 * row["step_high_s"]
        assert row["kernel_sent_bytes"] is None  # loopback is not ours alone
        assert math.isfinite(row["loss"])


def test_bytes_are_those_of_each_way(rows: list[Row]) -> None:
    found = {row["method"]: row for row in rows}
    k = 617
    assert found["alone"]["accounted_bytes"] == 0
    assert found["ddp"]["accounted_bytes"] == 4 * LENET5
    assert found["ddp-fp16"]["accounted_bytes"] == 2 * LENET5
    assert found["ddp-powersgd"]["accounted_bytes"] < 0.1 * 4 * LENET5
    assert found["paper-topk"]["accounted_bytes"] == 8 * k
    assert found["paper-dgc"]["accounted_bytes"] <= 8 * 1.3 * k + 8
    assert found["topk"]["kept"] == k
    assert found["topk"]["accounted_bytes"] < 4 * k
    assert k < found["adamrows:density=0.01"]["accounted_bytes"] < 4 * k
    local = found["local:sync_every=2:density=0.01"]
    assert k / 2 < local["accounted_bytes"] < k  # in every second step
    assert (local["period"], local["steps"], found["topk"]["period"]) == (2, 4, 1)


def test_phases_and_ratios_are_told(rows: list[Row]) -> None:
    found = {row["method"]: row for row in rows}
    for name in ("topk", "paper-topk", "paper-dgc"):
        row = found[name]
        assert 0 < row["select_s"] < row["step_s"]
        assert row["exchange_s"] > 0
        assert row["finish_s"] > 0
    assert found["ddp"]["exchange_s"] is None  # DDP does not tell
    assert found["ddp-fp16"]["exchange_s"] > 0
    assert found["ddp"]["speedup"] == 1
    assert found["alone"]["speedup"] is None
    assert found["topk"]["wait_s"] == pytest.approx(found["topk"]["step_s"] - found["alone"]["step_s"])


def test_it_trains_until_a_loss(rows: list[Row]) -> None:
    easy = NetConfig(("lenet5",), ("loopback",), ("topk",), (1,), batch_size=2, steps=40, until_loss=1e9)
    ((row,),) = NetBench(easy).run()
    assert row["steps"] == 10  # the fewest whose mean is looked at
    assert row["loss_s"] > 5 * row["step_low_s"]
    assert all(one["loss_s"] is None for one in rows)


def test_a_method_that_is_recalled_goes_on_where_it_was() -> None:
    def prepare(name: str) -> None:
        ranks.call("prepare", parse_workload("lenet5"), parse_method(name), 0.01, 2, 0)
        ranks.call("attach")

    def losses(steps: int) -> list[float]:
        (window,) = ranks.call("measure", steps, 60.0, None)
        return [step.loss for step in window.steps]

    with Ranks(1, False, Trainer) as ranks:
        prepare("topk")
        straight = losses(4)
        prepare("topk")
        first = losses(2)
        ranks.call("keep", "topk")
        prepare("ddp")
        losses(1)
        ranks.call("recall", "topk")
        assert first + losses(2) == straight


@needs_namespaces
def test_a_shaped_link_slows_the_dense_exchange_and_the_kernel_counts_it() -> None:
    # so slow that dense takes 1.6 s: on a busy machine, with 0.6 s, `auto` tried it now and then
    config = NetConfig(("vector:1e6",), ("20mbit",), ("ddp", "topk", "topk/auto"), (2,), rounds=1, steps=3)
    ((dense, sparse, auto),) = NetBench(config).run()
    assert dense["step_s"] > 0.9 * 8 * dense["accounted_bytes"] / 20e6
    assert dense["kernel_sent_content_bytes"] == pytest.approx(dense["accounted_bytes"], rel=0.02)
    assert sparse["speedup"] > 2
    assert not auto["sent_dense"]


def test_a_step_is_the_mean_over_a_round_where_exchanges_are_seldom() -> None:
    spent = Spent(None, None, None, 0, 0, dense=False)
    seconds = [1.0, 1.0, 4.0, 1.0, 1.0, 7.0]
    window = Window([StepRow(one, 0.0, 0.0, one, 2.0, spent) for one in seconds], None, 2)
    row = netrun._row(parse_method("local:sync_every=3"), [[window], [window]])
    assert (row["step_s"], row["round_step_s"], row["optimizer_s"], row["steps"]) == (2.5, [2.5, 2.5], 2.5, 12)


class Interrupted(NetBench):
    """The user presses Ctrl-C when the second method begins."""

    def _window(self, ranks: Ranks, setting: NetSetting, method: NetMethod, again: bool) -> list[Window]:
        if method.name == "topk":
            raise KeyboardInterrupt
        spent = Spent(None, None, None, 8, 2, dense=True)
        return [Window([StepRow(0.5, 0.1, 0.3, 0.1, 2.0, spent)] * 3, None, 2)]


def test_an_interrupted_setting_keeps_the_methods_that_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netrun, "Ranks", lambda *_: contextlib.nullcontext())
    runs = Interrupted(NetConfig(rates=("loopback",), methods=("ddp", "topk"), rounds=1)).run()
    found = next(runs)
    with pytest.raises(KeyboardInterrupt):
        next(runs)
    assert [row["method"] for row in found] == ["alone", "ddp"]
    assert [(row["step_s"], row["accounted_bytes"], row["efficiency"]) for row in found] == [(0.5, 8, 1)] * 2
