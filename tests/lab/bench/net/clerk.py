"""What ranks run in these tests: no torch, a socket, and ways to fail."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

from gaussiank_lab.bench.net.links import DEVICE, address, read_counters

PORT = 29_500


class Clerk:
    def __init__(self, rank: int, world_size: int, url: str) -> None:
        self.rank, self.world_size, self.url = rank, world_size, url

    def about(self) -> tuple[int, int, str]:
        return self.rank, self.world_size, self.url

    def devices(self) -> list[str]:
        lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
        return sorted(line.partition(":")[0].strip() for line in lines)

    def fail_if(self, rank: int) -> None:
        if self.rank == rank:
            raise ValueError("three is no number of mine")

    def end_if(self, rank: int) -> None:
        if self.rank == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # the others would wait; they are ended

    def listen(self) -> None:
        if self.rank == 0:
            self._server = socket.create_server((address(0), PORT))

    def send(self, numel: int) -> tuple[float, int, int]:
        """Rank 1 sends bytes to rank 0; returns seconds, and the bytes that the kernel counted as sent and received."""
        before = read_counters(DEVICE)
        began = time.perf_counter()
        if self.rank == 0:
            peer, _ = self._server.accept()
            with peer:
                while numel:
                    numel -= len(peer.recv(1 << 16))
                peer.sendall(b"!")
                peer.recv(1)
        else:
            with socket.create_connection((address(0), PORT)) as peer:
                began = time.perf_counter()
                peer.sendall(bytes(numel))
                peer.recv(1)
        counted = read_counters(DEVICE).since(before)
        return time.perf_counter() - began, counted.sent_content_bytes, counted.received_content_bytes
