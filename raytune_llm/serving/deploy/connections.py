"""The HTTP connections of Ray Serve's proxy, bounded in number, in bytes of headers and in seconds.

uvicorn, which the proxy runs, bounds none of them with httptools. A connection whose request has been received whole is
left alone as long as its client reads: requests and answers are bounded in the replica (api/bounds.py,
api/admission.py). Pinned by
tests/test_compat.py on uvicorn 0.54.
"""

from __future__ import annotations

import asyncio
import json
import resource
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from raytune_llm.serving.api.errors import ApiError, invalid

MAX_CONNECTIONS = 1000
"""Of one proxy. Beyond them the oldest one that has sent no whole request is closed for a new one."""
MAX_HEADER_BYTES = 64 * 1024
"""Of an incomplete header, in addition to what one read from the socket returns (at most 256 KiB)."""
HEADER_SECONDS = 10.0
"""From a connection's begin, or a request's first byte, to the end of its headers."""
READ_SECONDS = 60.0
"""How long a client may leave so much of its answer unread that no more of it can be written."""
OPEN_FILES = 4 * MAX_CONNECTIONS


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's connection with bounds; `cycle` is its request that was received last."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._is_in_headers, self._header_bytes = False, 0
        self._begun = self.loop.time()
        self._start_timer()
        if len(self.connections) > MAX_CONNECTIONS:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_unread_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread_timer is None:
            self._unread_timer = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_unread_timer()

    def data_received(self, data: bytes) -> None:
        was_in_headers = self._is_in_headers
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.is_answering:
            self._stop_timer()
        else:
            self._start_timer()
        if was_in_headers and self._is_in_headers:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                message = f"the request's headers have more than {MAX_HEADER_BYTES} bytes"
                self._end_with(ApiError(431, message, code="headers_too_large"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_headers, self._header_bytes = True, 0

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._is_in_headers = False

    def send_400_response(self, msg: str) -> None:
        """For what the parser rejects."""
        self._end_with(invalid("this is no valid HTTP request", code="invalid_request"))

    @property
    def is_answering(self) -> bool:
        """Whether the headers of a request have been received and its answer hasn't been sent."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _expendable(self) -> tuple[bool, float]:
        """Sorts those first that have sent no whole headers, then by age."""
        return self.is_answering, self._begun

    def _make_room(self) -> None:
        """Close the oldest connection that has sent no whole request; this one when there is none."""
        others: list[Any] = [one for one in self.connections if isinstance(one, BoundedConnection) and one is not self]
        idle = [one for one in others if not one.is_answering or one.cycle.more_body]
        min(idle, key=lambda one: one._expendable, default=self).transport.abort()

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _too_slow(self) -> None:
        if self._is_in_headers:
            message = f"the request's headers did not arrive within {HEADER_SECONDS:g} seconds"
            self._end_with(ApiError(408, message, code="request_timeout"))
        else:
            self.transport.close()

    def _end_with(self, error: ApiError) -> None:
        """Send an error where no request is being answered, and close the connection."""
        body = json.dumps(error.body()).encode()
        head = (
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def allow_open_files() -> None:
    """Let this process have as many files open as its connections need, where the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
