"""Middleware that bounds the open answers of a replica: those being decoded and those waiting. Plain ASGI.

The engine's queue is the waiting line. Health, metrics and the list of models are never in it. A request holds one
place from its arrival, more of them once it is known how many answers it wants, and all of them to its end, whatever
ends it.
"""

from __future__ import annotations

from collections import Counter

from starlette.types import ASGIApp, Receive, Scope, Send

from raytune_llm.serving.api.auth import KEY_IN_SCOPE
from raytune_llm.serving.api.bounds import Refuse
from raytune_llm.serving.api.errors import ApiError, overloaded, overloaded_by_key

OPEN_REQUEST_IN_SCOPE = "raytune_llm.open_request"
"""The ASGI scope's entry with the OpenRequest."""


class Places:
    """The places of one replica. Belongs to one event loop."""

    def __init__(self, most: int, *, has_several_keys: bool) -> None:
        self._most = most
        self._most_per_key = max(1, 3 * most // 4) if has_several_keys else most
        self.most_per_request = max(1, most // 4)
        """A request for more answers counts as so many: it neither fills the line nor needs an empty one."""
        self._num_open = 0
        self._by_key: Counter[str] = Counter()

    def take(self, key: str, count: int) -> None:
        """Raises ApiError 503 when there aren't so many, or the key would hold more than one key may."""
        if self._num_open + count > self._most:
            raise overloaded()
        if self._by_key[key] + count > self._most_per_key:
            raise overloaded_by_key()
        self._num_open += count
        self._by_key[key] += count

    def free(self, key: str, count: int) -> None:
        self._num_open -= count
        self._by_key[key] -= count
        if not self._by_key[key]:
            del self._by_key[key]


class OpenRequest:
    """One client's request and the places that it holds."""

    def __init__(self, places: Places, key: str) -> None:
        """Takes one place. Raises ApiError as `Places.take`. `key`: the hash of its API key, "" without keys."""
        places.take(key, 1)
        self.key = key
        self._places, self._num_held = places, 1

    def take(self, num_answers: int) -> None:
        """Hold places for so many answers. Raises ApiError as `Places.take`."""
        more = max(0, min(num_answers, self._places.most_per_request) - self._num_held)
        self._places.take(self.key, more)
        self._num_held += more

    def end(self) -> None:
        self._places.free(self.key, self._num_held)
        self._num_held = 0


class AdmissionMiddleware:
    """Answers 503 with retry-after while as many answers are open as may be."""

    def __init__(self, app: ASGIApp, *, most_open: int, has_several_keys: bool, refuse: Refuse) -> None:
        self._app, self._refuse = app, refuse
        self._places = Places(most_open, has_several_keys=has_several_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        try:
            request = OpenRequest(self._places, scope[KEY_IN_SCOPE])
        except ApiError as error:
            await self._refuse(error)(scope, receive, send)
            return
        scope[OPEN_REQUEST_IN_SCOPE] = request
        try:
            await self._app(scope, receive, send)
        finally:
            request.end()
