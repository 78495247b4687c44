"""Starts ranks in networks of their own or on loopback, gives them orders, and ends them whatever happens."""

from __future__ import annotations

import multiprocessing as mp
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

from .rates import LOOPBACK, Rate
from .wires import DEVICE, address, connect, end_with, leave_network, serve_hub, shape

_END_TIMEOUT_S = 5.0
_OWN_PORT = 29_400  # free in a network that nobody else is in
_LOCALHOST = "127.0.0.1"


class Ranks:
    """Real processes, each with an object that takes orders; the group is connected when the context is entered.

    Args:
        world_size: how many.
        isolated: give each a network of its own, joined by a bridge; else they share this machine's loopback.
        make: a module's own function; called in each process with rank, world size, and a URL at which torch's workers
            meet; makes the object.

    Raises:
        RuntimeError: a rank has failed or ended; names it. The others are ended too.
    """

    def __init__(self, world_size: int, isolated: bool, make: Callable[[int, int, str], Any]) -> None:
        self.world_size, self.isolated = world_size, isolated
        self._make = make
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        self._hub: Connection | None = None
        self._rate: Rate | None = None

    def __enter__(self) -> Ranks:
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def pids(self) -> list[int]:
        """Process ids of the ranks, then of the hub if there is one."""
        return [process.pid or 0 for process in self._processes]

    def shape(self, rate: Rate) -> None:
        """Give every link a rate, on both ends; on loopback nothing changes."""
        if self._hub is None or rate == self._rate:
            return
        self._hub.send(rate)
        self._answered(self._hub)
        self.call("shape", rate)
        self._rate = rate

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of the object of every rank at once; return what each gave, in rank order."""
        for rank, pipe in enumerate(self._pipes):
            try:
                pipe.send((method, arguments))
            except (BrokenPipeError, ConnectionResetError):
                raise self._ended(rank) from None
        return self._answers()

    # ------------------------------------------------------------------ start and end

    def _start(self) -> None:
        with _quiet_torch():
            self._start_processes()
        if self._hub is not None:
            self._answered(self._hub)
        pids = self._answers()
        if self._hub is not None:
            self._hub.send(pids)
            self._answered(self._hub)
        self.call("connect")
        host, port = (address(0), _OWN_PORT) if self.isolated else (_LOCALHOST, _free_port())
        self.call("make", f"tcp://{host}:{port}")

    def _start_processes(self) -> None:
        context = mp.get_context("spawn")  # a fork would inherit the threads of torch half
        parent = os.getpid()
        self._pipes = [
            self._spawn(context, _serve_rank, rank, self.world_size, self.isolated, self._make, parent)
            for rank in range(self.world_size)
        ]
        if self.isolated:
            self._hub = self._spawn(context, serve_hub, parent)

    def _spawn(self, context: Any, serve: Callable[..., None], *arguments: Any) -> Connection:
        ours: Connection
        ours, theirs = context.Pipe()
        *before, parent = arguments
        process = context.Process(target=serve, args=(*before, theirs, parent), daemon=True)
        process.start()
        theirs.close()  # so that its end is seen here when the process ends
        self._processes.append(process)
        return ours

    def _end(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join(_END_TIMEOUT_S)
        for pipe in [*self._pipes, *([self._hub] if self._hub else [])]:
            pipe.close()
        self._processes, self._pipes, self._hub, self._rate = [], [], None, None

    # ------------------------------------------------------------------ answers

    def _answers(self) -> list[Any]:
        """Collect an answer of each; the first that fails or ends speaks for all."""
        answers: dict[int, Any] = {}
        places = {pipe: rank for rank, pipe in enumerate(self._pipes)}
        while len(answers) < self.world_size:
            ready = wait([pipe for pipe, rank in places.items() if rank not in answers])
            for rank in [rank for pipe, rank in places.items() if pipe in ready]:
                try:
                    passed, answer = self._pipes[rank].recv()
                except (EOFError, ConnectionResetError):
                    raise self._ended(rank) from None
                if not passed:
                    last_line = answer.strip().splitlines()[-1]
                    raise RuntimeError(f"rank {rank} failed and the others were ended: {last_line}")
                answers[rank] = answer
        return [answers[rank] for rank in range(self.world_size)]

    def _answered(self, hub: Connection) -> None:
        try:
            answer = hub.recv()
        except (EOFError, ConnectionResetError):
            raise RuntimeError("the hub of the network has ended, and the ranks were ended with it.") from None
        if isinstance(answer, str):
            raise RuntimeError(f"the network must be possible here, got: {answer}. Run with --rates {LOOPBACK}.")

    def _ended(self, rank: int) -> RuntimeError:
        self._processes[rank].join(_END_TIMEOUT_S)
        code = self._processes[rank].exitcode
        return RuntimeError(f"rank {rank} has ended with status {code}, and the others were ended.")


def _serve_rank(
    rank: int, world_size: int, isolated: bool, make: Callable[[int, int, str], Any], orders: Connection, parent: int
) -> None:
    """Take orders: what the process of a rank runs."""
    end_with(parent)
    made: Any = None
    try:
        if isolated:
            leave_network()
        orders.send((True, os.getpid()))
        while True:
            method, arguments = orders.recv()
            if method == "connect":
                if isolated:
                    connect(rank)
                answer = None
            elif method == "make":
                os.environ["GLOO_SOCKET_IFNAME"] = DEVICE if isolated else "lo"
                made = make(rank, world_size, *arguments)
                answer = None
            elif method == "shape":
                shape(DEVICE, *arguments)
                answer = None
            else:
                answer = getattr(made, method)(*arguments)
            orders.send((True, answer))
    except EOFError:
        return
    except BaseException as error:
        orders.send((False, traceback.format_exc()))  # the parent says it, so this process need not print it as well
        raise SystemExit(1) from error


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Keep torch in the processes that start now from warning that nobody there knows the names of addresses."""
    name = "TORCH_CPP_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ[name] = before or "ERROR"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind((_LOCALHOST, 0))
        port: int = taken.getsockname()[1]
    return port
