"""Starts workers, hears that they live, and says in one sentence why one ended."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from gaussiank.parsing import number_from
from gaussiank_lab.outputs import leave, steady_output

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


_ADVICE = "To enable traceback"  # torch's message where a worker has left none
TIMEOUT_S = 120.0
"""A collective that hangs longer ends the run; torch's own default is 30 minutes."""


def under_torchrun() -> bool:
    """Tell whether this process is a worker that torchrun (or another launcher of its kind) has started."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def require_job() -> None:
    """Raise unless what a launcher has said of this worker makes sense; torch reads it too.

    Raises:
        ValueError: a variable has no such number; names it.
    """
    workers = number_from("WORLD_SIZE", 1, least=1)
    number_from("RANK", 0, most=workers - 1)
    here = number_from("LOCAL_WORLD_SIZE", workers, least=1, most=workers)
    number_from("LOCAL_RANK", 0, most=here - 1)
    number_from("MASTER_PORT", 0, most=65_535)


def restarts() -> int:
    """Return how often the launcher has started the workers again after one of them failed."""
    return number_from("TORCHELASTIC_RESTART_COUNT", 0)


def launch(
    work: Callable[..., None],
    workers: int,
    *arguments: Any,
    timeout_s: float = TIMEOUT_S,
    max_restarts: int = 0,
) -> None:
    """Run ``work(*arguments)`` on every worker, within a process group.

    Args:
        work: a module's own function, so that a new process can import it.
        workers: how many processes to start here; under torchrun this one joins instead.
        *arguments: passed on; must be picklable.
        timeout_s: seconds after which a worker that does not answer ends all.
        max_restarts: times that all workers are started again after one has failed.

    Raises:
        RuntimeError: a worker failed; names the rank and its error. The other workers have been ended.
    """
    if under_torchrun():
        _within_group(work, arguments, timeout_s, None)
        return

    # Gloo's rendezvous after a restart finds what the first left in a shared store, and fails (pytorch issue 135712).
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    # A suspended worker hears no SIGTERM: torch kills it after this, or after 30 s in versions that do not know it.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "5")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        start_method=processes().get_start_method(),
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=workers,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=max_restarts,
        monitor_interval=0.1,
    )
    if not max_restarts:  # what torch logs of a failure is said in our last line
        for name in ("torch.distributed.elastic.multiprocessing.api", "torch.multiprocessing.spawn"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        elastic_launch(config, _within_group)(work, arguments, timeout_s, os.getpid())
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise RuntimeError(_why(rank, failure)) from error
    except SignalException as error:
        raise RuntimeError(f"the workers were ended, because of {error.sigval.name}.") from None


def processes() -> BaseContext:
    """Return how to start workers: by a server that has imported torch for all of them, where that can be.

    They have the environment and the output that this process had when it first started one. A fork cannot use CUDA
    where it was asked for before, and on other systems than Linux it is no safe start: there each worker begins anew,
    and imports for itself.
    """
    if sys.platform != "linux" or torch.cuda.is_available():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gaussiank_lab.fork_server"])
    return context


def _why(rank: int, failure: Any) -> str:
    """Say in a line why a worker ended: what it left, or what torch knows."""
    said = failure.message  # a dictionary when the worker left its error behind, a traceback's text, or advice
    lines = str(said["message"] if isinstance(said, dict) else said).strip().splitlines() or [""]
    line = lines[0] if isinstance(said, dict) else lines[-1]  # a message's first line says it, a traceback's last
    lost = f"{LostContactError.__name__}: "
    if line.startswith(lost):  # who noticed is not who failed
        return f"the workers were ended: {line.removeprefix(lost)}"
    if line.startswith(_ADVICE):
        line = f"it left no message, and ended with status {failure.exitcode}"
    return f"worker {rank} failed and the others were ended: {line}"


def _within_group(
    work: Callable[..., None], arguments: tuple[Any, ...], timeout_s: float, launcher: int | None
) -> None:
    if launcher is not None:
        end_with(launcher)
    steady_output()
    require_job()
    workers_here = number_from("LOCAL_WORLD_SIZE", number_from("WORLD_SIZE", 1))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers_here))
    backend = "cuda:nccl,cpu:gloo" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_s))
        host, port = os.environ["MASTER_ADDR"], number_from("MASTER_PORT", 0)
        pulse = Pulse(host, port, restarts(), dist.get_rank(), dist.get_world_size())
        with pulse.explaining():
            work(*arguments)
        pulse.leave(timeout_s)
    except Exception as error:  # noqa: BLE001  whatever it is, this worker must end, and say why
        _fail(error)
    dist.destroy_process_group()


def _fail(error: Exception) -> NoReturn:
    """Leave an error where the launcher looks for it, and end at once.

    An ordinary exit would wait for messages that never come; and a group closed in order would let peers report the
    lost connection before its cause. A suspended worker goes on, or it would not hear that the launcher ends it, which
    torch waits 30 s for.
    """
    leave(f"{type(error).__name__}: {error}")
    with contextlib.suppress(OSError):  # the message is left already
        traceback.print_exception(error)
        sys.stderr.flush()
        sys.stdout.flush()
    for children in Path("/proc").glob(f"{os.getppid()}/task/*/children"):  # the workers of this machine (Linux)
        for worker in children.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(worker), signal.SIGCONT)
    os._exit(1)


def end_with(launcher: int) -> None:
    """Let this worker be killed when its launcher ends in whatever way, so that no orphan writes on (Linux).

    A fork server between them ends with the launcher, and the worker with the server.
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    parent = os.getppid()
    if launcher not in (parent, _parent_of(parent)):  # it has ended already
        os._exit(1)


def _parent_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has ended, or this is not Linux
        return None


def world_size(wanted: int | None, usual: int | None = None) -> int:
    """Return the number of workers: what torchrun says when it has started us, else what is wanted, usual, or 4.

    Raises:
        ValueError: torchrun has another number than is wanted.
    """
    if not under_torchrun():
        return next(number for number in (wanted, usual, 4) if number is not None)
    require_job()
    given = number_from("WORLD_SIZE", 1)
    if wanted not in (None, given):
        raise ValueError(
            f"workers must be left out under torchrun, got {wanted} where torchrun has {given}. Leave it out."
        )
    return given
