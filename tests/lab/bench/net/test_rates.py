"""Rates from text."""

from __future__ import annotations

import pytest
from tests.each import each

from gaussiank_lab.bench.net.links import parse_rate


@each(
    ("text", "bits_s", "isolated", "mtu"),
    [
        ("20mbit", 20e6, True, 1500),
        (" 5000kbit", 5e6, True, 1500),
        ("10GBIT", 10e9, True, 9000),
        ("unshaped", None, True, 9000),
        ("loopback", None, False, 9000),
    ],
)
def test_rates_are_read(text: str, bits_s: float | None, isolated: bool, mtu: int) -> None:
    rate = parse_rate(text)
    assert (rate.bits_s, rate.isolated, rate.mtu) == (bits_s, isolated, mtu)


@each(("text", "burst"), [("5mbit", 3028), ("100mbit", 12_500), ("10gbit", 1_250_000)])
def test_no_more_than_a_millisecond_leaves_at_once(text: str, burst: int) -> None:
    rate = parse_rate(text)
    assert rate.burst_bytes == burst
    assert rate.queue_bytes > burst


@each("text", ["", "100", "0.5mbit", "200gbit", "fast", "1e3mbit", "-5mbit"])
def test_other_rates_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="rates must be loopback, unshaped, or from 1mbit to 100gbit, got"):
        parse_rate(text)
