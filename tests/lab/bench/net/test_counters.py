"""The kernel's table of devices."""

from __future__ import annotations

from pathlib import Path

import pytest

from gaussiank_lab.bench.net.links import Counters, read_counters

TABLE = """\
Inter-|   Receive                                     |  Transmit
 face |bytes    packets errs drop fifo frame comp. mult.|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       2    0    0    0     0     0     0      300       4    0    0    0     0       0          0
   gk0: 1000000    1000    0    0    0     0     0     0  2000000    3000    0    0    0     0       0          0
"""


def test_columns_and_headers_are_told_apart(tmp_path: Path) -> None:
    table = tmp_path / "dev"
    table.write_text(TABLE)
    found = read_counters("gk0", table)
    assert found == Counters(2_000_000, 3000, 1_000_000, 1000)
    later = found.since(Counters(1_000_000, 1000, 0, 0))
    assert later.sent_content_bytes == 1_000_000 - 66 * 2000
    assert later.received_content_bytes == 1_000_000 - 66 * 1000
    assert later.without(Counters(1000, 10, 4_000_000, 0), 0.5) == Counters(999_500, 1995, 0, 1000)


def test_a_missing_device_is_named(tmp_path: Path) -> None:
    table = tmp_path / "dev"
    table.write_text(TABLE)
    with pytest.raises(ValueError, match=r"device must be in .*, got gk1"):
        read_counters("gk1", table)
