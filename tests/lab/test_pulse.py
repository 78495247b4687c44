"""Who is silent: workers as threads' pulses on one store."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from torch._C._distributed_c10d import TCPStore

from gaussiank_lab import launch as pulse_module
from gaussiank_lab.launch import LostContactError, Pulse


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(pulse_module, "BEAT_S", 0.05)
    monkeypatch.setattr(pulse_module, "LISTEN_S", 0.6)
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=datetime.timedelta(seconds=10))
    yield store.port
    del store


def pulses(port: int, world_size: int, **changes: Any) -> list[Pulse]:
    return [Pulse("localhost", port, 0, rank, world_size, **changes) for rank in range(world_size)]


def test_a_silent_worker_is_named(port: int) -> None:
    beating = pulses(port, 3)
    beating[1].stop()
    assert beating[0].verdict() == "no sign of life from rank 1: it has ended or stands still"
    beating[2].stop()


def test_a_worker_that_is_busy_elsewhere_is_told_from_a_silent_one(port: int) -> None:
    beating = pulses(port, 3)
    beating[2].verdict()  # it has lost contact as well
    assert beating[0].verdict() == "rank 1 is alive but takes no part: it is busy or stuck"
    beating[1].verdict()
    assert beating[0].verdict() == "every rank is alive, but they have lost each other"
    for one in beating:
        one.stop()


def test_nothing_of_an_earlier_start_is_heard(port: int) -> None:
    old = pulses(port, 2)
    new = Pulse("localhost", port, 1, 0, 2)
    assert new.verdict() == "no sign of life from rank 1: it has ended or stands still"
    for one in (*old, new):
        one.stop()


def test_errors_of_the_communication_alone_are_explained(port: int) -> None:
    alone = pulses(port, 1)[0]
    sentence = (
        r"^every rank is alive, but they have lost each other \(rank 0: \[gloo/x.cc:1\] Timed out waiting 3 ms\)$"
    )
    with pytest.raises(LostContactError, match=sentence), alone.explaining():
        raise RuntimeError("[gloo/x.cc:1] Timed out waiting 3 ms\nsecond line")
    with pytest.raises(RuntimeError, match="shapes differ"), alone.explaining():
        raise RuntimeError("shapes differ")
    with pytest.raises(ValueError, match="connection"), alone.explaining():
        raise ValueError("connection")
    alone.stop()


def test_a_store_that_is_gone_is_said_to_be(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = pulses(port, 1)[0]
    alone.stop()
    monkeypatch.setattr(alone, "_store", None)
    assert alone.verdict().startswith("no sign of life from rank 0, or from the launcher, which keep the store")


def test_a_store_that_never_answers_ends_no_waiting(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = pulses(port, 1)[0]
    alone.stop()
    ended = threading.Event()
    monkeypatch.setattr(alone, "_ask", ended.wait)
    assert alone.verdict().startswith("no sign of life from rank 0, or from the launcher")
    ended.set()


def test_rank_0_leaves_last(port: int) -> None:
    beating = pulses(port, 2)
    left: list[int] = []
    first = threading.Thread(target=lambda: (beating[0].leave(20), left.append(0)))
    first.start()
    beating[1].leave(20)
    left.append(1)
    first.join()
    assert sorted(left) == [0, 1]
    started = time.monotonic()
    pulses(port, 3)[0].leave(0.3)  # the others never do
    assert 0.3 <= time.monotonic() - started < 10
