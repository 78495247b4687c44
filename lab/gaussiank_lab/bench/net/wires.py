"""The network of a run: namespaces, a bridge and links, made with ``ip`` and ``tc``.

Each rank unshares a network namespace of its own, and a further process, the hub, holds one with the bridge. None of
them has a name, and this machine's own network is never touched: a namespace ends with its last process, and its links
with it. So nothing can be left behind, however a run ends.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from .rates import Rate

DEVICE = "gk0"
"""The device of every rank, in its own namespace."""

_BRIDGE = "gkhub"
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_NET_ADMIN, _SYS_ADMIN = 12, 21  # numbers of capabilities
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


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


def end_with(parent: int) -> None:
    """Let this process be killed when the one that started it ends in whatever way, and leave Ctrl-C to that one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


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


def shape(device: str, rate: Rate) -> None:
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
    end_with(parent)
    ports: list[str] = []
    leave_network()
    orders.send(os.getpid())
    while True:
        try:
            order = orders.recv()
        except EOFError:
            return
        try:
            if isinstance(order, Rate):
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
