"""Where no key is needed: requests of this machine's own programs and pages, none that another site's page makes."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from raytune_llm.serving.api.bounds import Refuse
from raytune_llm.serving.api.errors import ApiError
from raytune_llm.serving.deploy.config import is_loopback


class OwnMachineMiddleware:
    """Answers 403 to a request whose Host is a name that was made to mean this machine, or whose Origin is another
    site: a browser sends both, whatever page it shows."""

    def __init__(self, app: ASGIApp, *, refuse: Refuse) -> None:
        self._app, self._refuse = app, refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_own(Headers(scope=scope)):
            message = "without API keys this service answers to this machine's own programs and pages alone"
            await self._refuse(ApiError(403, message, code="forbidden_origin"))(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _is_own(headers: Headers) -> bool:
    host, origin = headers.get("host", ""), headers.get("origin")
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return is_loopback(name) and (origin is None or origin == f"http://{host}")
