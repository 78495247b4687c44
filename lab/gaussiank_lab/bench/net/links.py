"""Links of a given rate: network namespaces, token buckets, and what the kernel counted on them."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from gaussiank_lab.launch import end_with

LOOPBACK = "loopback"
UNSHAPED = "unshaped"
LEAST_BITS_S, MOST_BITS_S = 1e6, 1e11
_UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_BURST_S = 0.001
_QUEUE_S = 0.05


@dataclass(frozen=True)
class LinkRate:
    """The rate of a link in each direction.

    Attributes:
        name: as the user wrote it.
        bits_s: bits a second; None for a link that nothing slows down.
        isolated: whether each rank has a network of its own; without one they share this machine's loopback.
    """

    name: str
    bits_s: float | None
    isolated: bool

    @property
    def mtu(self) -> int:
        """Bytes of the largest packet: as in a usual network, or a fast one that is set up for it."""
        return 9000 if self.bits_s is None or self.bits_s > 2e9 else 1500

    @property
    def burst_bytes(self) -> int:
        """Bytes that may leave at once after a pause: what the rate carries in 1 ms, and at least two packets.

        A smaller one throttles below the rate, because a timer of a busy machine is late; a larger one lets short
        messages through unshaped.
        """
        assert self.bits_s is not None  # only a shaped link has one
        return int(max(2 * (self.mtu + 14), _BURST_S * self.bits_s / 8))

    @property
    def queue_bytes(self) -> int:
        """Bytes that wait at a port before packets are dropped: 50 ms, and at least a quarter of a megabyte."""
        assert self.bits_s is not None
        return int(max(256_000, _QUEUE_S * self.bits_s / 8)) + self.burst_bytes


def parse_rate(text: str) -> LinkRate:
    """Read a rate: ``20mbit``, ``1gbit``, ``unshaped`` (separate networks at full speed) or ``loopback``.

    Raises:
        ValueError: it is none, or out of 1 Mbit to 100 Gbit a second.

    Example:
        >>> parse_rate("2.5gbit").bits_s
        2500000000.0
    """
    name = text.strip().lower()
    if name in (LOOPBACK, UNSHAPED):
        return LinkRate(name, None, name == UNSHAPED)
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)", name)
    bits_s = float(found[1]) * _UNITS[found[2]] if found else 0.0
    if not LEAST_BITS_S <= bits_s <= MOST_BITS_S:
        raise ValueError(
            f"rates must be loopback, unshaped, or from 1mbit to 100gbit, got {text!r}. Write 20mbit,1gbit,loopback."
        )
    return LinkRate(name, bits_s, isolated=True)


FRAME_BYTES = 66
"""Ethernet, IPv4 and TCP with time stamps around a packet; the kernel splits large ones after it has counted them."""


class Counters(NamedTuple):
    """Bytes and packets since the device was made.

    Attributes:
        sent_bytes: with all headers.
        sent_packets: one header each.
        received_bytes: with all headers.
        received_packets: one header each.
    """

    sent_bytes: int
    sent_packets: int
    received_bytes: int
    received_packets: int

    def since(self, earlier: Counters) -> Counters:
        """Return what came on top of an earlier count."""
        return Counters(*(now - then for now, then in zip(self, earlier, strict=True)))

    def without(self, part: Counters, times: float) -> Counters:
        """Return the rest when a part is taken off several times, but never less than nothing."""
        return Counters(*(max(0, round(all_ - times * one)) for all_, one in zip(self, part, strict=True)))

    @property
    def sent_content_bytes(self) -> int:
        """Bytes sent without the headers of packets."""
        return self.sent_bytes - FRAME_BYTES * self.sent_packets

    @property
    def received_content_bytes(self) -> int:
        """Bytes received without the headers of packets."""
        return self.received_bytes - FRAME_BYTES * self.received_packets


def read_counters(device: str, table: Path = Path("/proc/thread-self/net/dev")) -> Counters:
    """Return the counters of a device.

    Raises:
        ValueError: there is no such device.
    """
    found = re.search(rf"^\s*{re.escape(device)}:(.*)$", table.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise ValueError(f"device must be in {table}, got {device}. Connect the rank first.")
    numbers = [int(number) for number in found[1].split()]
    return Counters(numbers[8], numbers[9], numbers[0], numbers[1])


DEVICE = "gk0"
"""The device of every rank, in its own namespace."""

_BRIDGE = "gkhub"
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_NET_ADMIN, _SYS_ADMIN = 12, 21  # numbers of capabilities


def missing() -> str | None:
    """Return why ranks cannot have networks of their own here, in a few words; None when they can."""
    if sys.platform != "linux":
        return f"network namespaces need Linux, this is {sys.platform}"
    if not _allowed():
        return "network namespaces need root (CAP_SYS_ADMIN and CAP_NET_ADMIN)"
    absent = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if absent:
        return f"the command {' and '.join(absent)} is missing (package iproute2)"
    return None


def _allowed(status: Path = Path("/proc/self/status")) -> bool:
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", status.read_text(encoding="utf-8"), re.MULTILINE)
    return found is not None and all(int(found[1], 16) >> number & 1 for number in (_NET_ADMIN, _SYS_ADMIN))


def address(rank: int) -> str:
    """Return the address of a rank.

    Example:
        >>> address(0), address(299)
        ('10.77.0.1', '10.77.1.44')
    """
    return f"10.77.{(rank + 1) // 256}.{(rank + 1) % 256}"


def obey(parent: int) -> None:
    """Let this process be killed when the one that started it ends in whatever way, and leave Ctrl-C to that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent)


def leave_network() -> None:
    """Move this process, and what it starts from now on, into a network of its own.

    Raises:
        RuntimeError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_NETWORK) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise RuntimeError(f"a network namespace must be allowed here, got: {reason}. Run with --rates loopback.")


def connect(rank: int) -> None:
    """Give the device that the hub has put here its address."""
    _run("ip", "link", "set", "lo", "up")
    ipv6 = Path("/proc/sys/net/ipv6/conf") / DEVICE / "disable_ipv6"
    if ipv6.exists():
        ipv6.write_text("1")  # its neighbour discovery would be counted with the gradients
    _run("ip", "address", "add", f"{address(rank)}/16", "dev", DEVICE)
    _run("ip", "link", "set", DEVICE, "up")


def shape(device: str, rate: LinkRate) -> None:
    """Let a device of this process's network send at a rate, whatever it did before."""
    _run("ip", "link", "set", device, "mtu", str(rate.mtu))
    if rate.bits_s is None:
        _run("tc", "qdisc", "replace", "dev", device, "root", "pfifo", "limit", "10000")
        return
    _run(
        *("tc", "qdisc", "replace", "dev", device, "root", "tbf", "rate", f"{rate.bits_s:.0f}bit"),
        *("burst", str(rate.burst_bytes), "limit", str(rate.queue_bytes)),
    )


def serve_hub(orders: Connection, parent: int) -> None:
    """Hold the bridge: what the hub's process runs.

    It answers its process id, then takes one order after the other, each answered by an error or None: first the
    process ids of the ranks, between which it lays links; then rates.
    """
    obey(parent)
    ports: list[str] = []
    leave_network()
    orders.send(os.getpid())
    while True:
        try:
            order = orders.recv()
        except EOFError:
            return
        try:
            if isinstance(order, LinkRate):
                for port in ports:
                    shape(port, order)
            else:
                ports = _lay(order)
        except (RuntimeError, OSError) as error:  # a command failed, or could not be run; the parent says it
            orders.send(str(error))
        else:
            orders.send(None)


def _lay(pids: Sequence[int]) -> list[str]:
    _run("ip", "link", "add", "name", _BRIDGE, "type", "bridge")
    _run("ip", "link", "set", _BRIDGE, "up")
    ports = [f"gkport{rank}" for rank in range(len(pids))]
    for port, pid in zip(ports, pids, strict=True):
        _run("ip", "link", "add", "name", port, "type", "veth", "peer", "name", DEVICE, "netns", str(pid))
        _run("ip", "link", "set", port, "master", _BRIDGE, "up")
    return ports


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()}")
