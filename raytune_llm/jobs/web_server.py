"""The web server of a command: bounded connections, and an end that lets open answers end first."""

from __future__ import annotations

import logging
import math
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn

from raytune_llm.jobs import stopping
from raytune_llm.serving.deploy.connections import BoundedConnection, allow_open_files


class WebServer(uvicorn.Server):
    """Serves an ASGI app until the first SIGTERM or Ctrl-C; the next one ends the process."""

    def __init__(
        self, app: Any, *, drain_seconds: float, on_start: Callable[[], None], on_stop: Callable[[], None]
    ) -> None:
        """on_start: called when it listens; on_stop: when it is to end, before open answers are waited for."""
        allow_open_files()
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        super().__init__(
            uvicorn.Config(
                app,
                http=BoundedConnection,
                ws="none",
                lifespan="off",
                loop="asyncio",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=math.ceil(drain_seconds),
            )
        )
        self._drain_seconds, self._on_start, self._on_stop = drain_seconds, on_start, on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stop()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:  # uvicorn's own raises them again at the end
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._stop)
        yield

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.should_exit = True
        stopping.end_at_next_signal()
        print(
            f"stopping: new requests are refused, open answers have up to {self._drain_seconds:g} s to end; "
            "Ctrl-C again ends at once",
            flush=True,
        )
