"""The page's server: this machine alone can reach it, and it can be asked for two things."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

from gaussiank_lab.watch.state import state_of
from gaussiank_lab.watch.tail import RecordTail

HOST = "127.0.0.1"
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


def make_server(run_dir: Path, port: int) -> ThreadingHTTPServer:
    """Return a server of one run's page, bound to 127.0.0.1; ``serve_forever`` runs it.

    Args:
        run_dir: directory of the run, which may not have begun.
        port: to listen on; 0 takes any that is free.

    Raises:
        ValueError: the port is taken or is none.
    """
    page = files("gaussiank_lab.watch").joinpath("page.html").read_text(encoding="utf-8").encode()
    state = _watched(run_dir)

    class Handler(BaseHTTPRequestHandler):
        """Answers for the page and for its data."""

        def do_GET(self) -> None:
            """Send the page, the state of the run, or nothing."""
            host = self.headers.get("Host", "").rpartition(":")[0]
            if host not in (HOST, "localhost"):  # another site's name that points here must not read the run
                self.send_error(HTTPStatus.FORBIDDEN)
            elif self.path == "/":
                self._send("text/html; charset=utf-8", page)
            elif self.path == "/state.json":
                self._send("application/json", json.dumps(state()).encode())
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the name is the base class's
            """Say nothing: the terminal is the user's."""

        def _send(self, kind: str, body: bytes) -> None:
            self.send_response(HTTPStatus.OK)
            for name, value in (
                ("Content-Type", kind),
                ("Content-Length", str(len(body))),
                ("Content-Security-Policy", _POLICY),
                ("X-Content-Type-Options", "nosniff"),
                ("Cache-Control", "no-store"),
            ):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise ValueError(f"port must be free, got {port} ({error}). Give another, or 0 for any.") from None


def _watched(run_dir: Path) -> Callable[[], dict[str, Any]]:
    """Return a function that gives the state of a run now; it reads only what is new."""
    tail, lock = RecordTail(run_dir), threading.Lock()
    known = {"run": str(run_dir), **state_of([])}

    def state() -> dict[str, Any]:
        nonlocal known
        with lock:
            if tail.look():
                known = {"run": str(run_dir), **state_of(tail.records)}
            return known

    return state
