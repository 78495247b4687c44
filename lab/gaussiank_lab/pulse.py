"""Signs of life: each worker leaves one twice a second, so that those who lose a peer can say which."""

from __future__ import annotations

import contextlib
import datetime
import re
import threading
from collections.abc import Iterator

from torch._C._distributed_c10d import TCPStore  # torch.distributed shows it at run time only, not to type checkers

BEAT_S = 0.5
LISTEN_S = 4 * BEAT_S  # on a busy machine one beat may come late, four in a row do not

_NO_STORE = "no sign of life from rank 0, or from the launcher, which keep the store: one has ended or stands still"
_LOST = re.compile(r"gloo|nccl|connection|timed out|socket|broken pipe|\blost\b", re.IGNORECASE)


class LostContactError(RuntimeError):
    """A message that did not arrive, and the workers that it is known of."""


class Pulse:
    """Beat for one worker, and listen to all.

    Args:
        host: of the store that all workers reach.
        port: of it.
        attempt: names this start of the workers; after a restart nothing old is heard.
        rank: this worker's.
        world_size: number of workers.
    """

    def __init__(self, host: str, port: int, attempt: int, rank: int, world_size: int) -> None:
        # a connection of its own: one that waits for something else would hold the beats up
        limit = datetime.timedelta(seconds=2 * LISTEN_S)
        self._store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=limit)
        self._attempt, self._rank, self._world_size = attempt, rank, world_size
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="gaussiank pulse", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Beat no more."""
        self._ended.set()
        self._thread.join()

    def leave(self, timeout_s: float) -> None:
        """End in peace: whoever may keep the store, rank 0, waits for the others, and they wait for nobody.

        A barrier would hold the others up while rank 0 draws its report, and fail when that takes too long.
        """
        self.stop()
        self._store.set(self._key("done", self._rank), "1")
        if self._rank == 0:
            others = [self._key("done", rank) for rank in range(1, self._world_size)]
            with contextlib.suppress(Exception):  # one that never leaves is its launcher's business
                self._store.wait(others, datetime.timedelta(seconds=timeout_s))

    @contextlib.contextmanager
    def explaining(self) -> Iterator[None]:
        """Turn an error of the communication into one that names the workers behind it.

        Raises:
            LostContactError: in its place.
        """
        try:
            yield
        except RuntimeError as error:
            if not _LOST.search(str(error)):
                raise
            first_line = str(error).strip().splitlines()[0]
            raise LostContactError(f"{self.verdict()} (rank {self._rank}: {first_line})") from error

    def verdict(self) -> str:
        """Say which workers are silent, or alive but elsewhere; takes two seconds, at most six."""
        answers: list[str] = []
        thread = threading.Thread(target=lambda: answers.append(self._ask()), name="gaussiank verdict", daemon=True)
        thread.start()
        thread.join(3 * LISTEN_S)  # a store whose keeper is suspended never answers
        return answers[0] if answers else _NO_STORE

    def _ask(self) -> str:
        try:
            self._store.set(self._key("lost", self._rank), "1")
            before = self._heard()
            self._ended.wait(LISTEN_S)
            after = self._heard()
            others = [rank for rank in range(self._world_size) if rank != self._rank]
            silent = [rank for rank in others if after[rank] == before[rank]]
            elsewhere = [rank for rank in others if not self._store.check([self._key("lost", rank)])]
        except Exception:  # noqa: BLE001  whatever it is, the store is out of reach, and that is the answer
            return _NO_STORE
        if silent:
            return f"no sign of life from rank {', '.join(map(str, silent))}: it has ended or stands still"
        if elsewhere:
            return f"rank {', '.join(map(str, elsewhere))} is alive but takes no part: it is busy or stuck"
        return "every rank is alive, but they have lost each other"

    def _heard(self) -> list[bytes]:
        keys = [self._key("beat", rank) for rank in range(self._world_size)]
        return [self._store.get(key) if self._store.check([key]) else b"" for key in keys]

    def _key(self, what: str, rank: int) -> str:
        return f"gaussiank/{what}/{self._attempt}/{rank}"

    def _beat(self) -> None:
        beats = 0
        with contextlib.suppress(Exception):  # without a store there is nobody to beat for
            while not self._ended.wait(BEAT_S if beats else 0):
                beats += 1
                self._store.set(self._key("beat", self._rank), str(beats))
