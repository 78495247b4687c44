"""Processes that take orders: what they answer, how they fail, and that none is left."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.each import each
from tests.lab.bench.net.clerk import Clerk

from gaussiank_lab.bench.net.links import DEVICE, missing, parse_rate
from gaussiank_lab.bench.net.run import Ranks

ROOT = Path(__file__).parents[4]
needs_namespaces = pytest.mark.skipif(missing() is not None, reason=f"{missing()}")
KILLED = """
import sys, time
from gaussiank_lab.bench.net.run import Ranks
from tests.lab.bench.net.clerk import Clerk
if __name__ == "__main__":
    with Ranks(2, sys.argv[1] == "True", Clerk) as ranks:
        print(*ranks.pids, flush=True)
        time.sleep(60)
"""


def wait_for_end(pids: list[int], timeout_s: float = 20.0) -> None:
    """Return when no process of these numbers is left; fail after the time."""
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            assert select.select([handle], [], [], timeout_s)[0], f"process {pid} has outlived its run"
        finally:
            os.close(handle)


def network() -> str:
    """What this machine's own network looks like."""
    return subprocess.run(("ip", "-o", "link"), capture_output=True, text=True, check=True).stdout


def test_every_rank_answers_in_order_and_none_is_left() -> None:
    with Ranks(2, False, Clerk) as ranks:
        pids = ranks.pids
        first, second = ranks.call("about")
    assert (first[:2], second[:2]) == ((0, 2), (1, 2))
    assert first[2] == second[2]
    assert first[2].startswith("tcp://127.0.0.1:")
    wait_for_end(pids)


@each(
    ("order", "sentence"),
    [
        ("fail_if", "rank 1 failed and the others were ended: ValueError: three is no number of mine"),
        ("end_if", "rank 1 has ended with status -9, and the others were ended"),
    ],
)
def test_what_befalls_one_rank_ends_all_and_is_named(order: str, sentence: str) -> None:
    with Ranks(2, False, Clerk) as ranks:
        pids = ranks.pids
        with pytest.raises(RuntimeError, match=sentence):
            ranks.call(order, 1)
    wait_for_end(pids)


@needs_namespaces
def test_links_carry_what_they_should_and_the_kernel_counts_it() -> None:
    before = network()
    with Ranks(2, True, Clerk) as ranks:
        pids = ranks.pids
        assert network() == before  # nothing is added to this machine's own network
        assert ranks.call("devices") == [sorted([DEVICE, "lo"])] * 2
        assert ranks.call("about")[0][2].startswith("tcp://10.77.0.1:")
        ranks.call("listen")
        ranks.shape(parse_rate("20mbit"))
        numel = 250_000  # 0.1 s at 20 Mbit a second
        (_, _, received), (slow_s, sent, _) = ranks.call("send", numel)
        ranks.shape(parse_rate("unshaped"))
        _, (fast_s, _, _) = ranks.call("send", numel)
    assert sent == pytest.approx(numel, rel=0.01)
    assert received == pytest.approx(numel, rel=0.01)
    assert slow_s > 0.09
    assert fast_s < slow_s
    wait_for_end(pids)
    assert network() == before


@pytest.mark.parametrize("isolated", [False, pytest.param(True, marks=needs_namespaces)])
def test_a_killed_run_leaves_nothing(isolated: bool) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(isolated)], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert run.stdout is not None
    pids = [int(pid) for pid in run.stdout.readline().split()]
    assert len(pids) == 2 + isolated
    spaces = [Path(f"/proc/{pid}/ns/net").readlink() for pid in pids]
    own = Path("/proc/self/ns/net").readlink()
    assert len({own, *spaces}) == (4 if isolated else 1)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    wait_for_end(pids)
