"""Who may use the server: host names and the API key."""

import asyncio
import hmac
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tpo_jax.serving.errors import ApiError
from tpo_jax.serving.metrics import Metrics
from tpo_jax.serving.page_api import ASSETS
from tpo_jax.serving.settings import ServerSettings

WITHOUT_KEY = (*ASSETS, "/health")


class AccessControl:
    """ASGI middleware: checks host name and API key, counts responses by path and status."""

    def __init__(
        self, app: ASGIApp, settings: ServerSettings, metrics: Metrics, paths: Sequence[str]
    ):
        self.app, self.metrics, self.paths = app, metrics, paths
        self.hosts = settings.hosts
        self.key = settings.api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, or pass on what is not HTTP."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"] if scope["path"] in self.paths else "other"
        begun = False

        async def counted(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self.metrics.requests.labels(path, message["status"]).inc()
            await send(message)

        try:
            if error := self._refusal(path, dict(scope["headers"])):
                return await error.response()(scope, receive, counted)
            await self.app(scope, receive, counted)
        except asyncio.CancelledError:  # the server stops and waits no longer
            if not begun:
                await ApiError(503, "the server is shutting down").response()(
                    scope, receive, counted
                )
        except Exception:  # Starlette's outermost middleware answers it
            if not begun:
                self.metrics.requests.labels(path, 500).inc()
            raise

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> ApiError | None:
        # A web page whose name is made to resolve to this machine sends that name as host.
        if not host_allowed(headers.get(b"host", b"").decode("latin-1"), self.hosts):
            return ApiError(400, "unknown Host header; see --allowed_hosts", "invalid_host")
        if self.key and path not in WITHOUT_KEY:
            scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(given, self.key):
                return ApiError(401, "the API key is missing or wrong", "invalid_api_key")
        return None


def host_allowed(host: str, allowed: Sequence[str]) -> bool:
    """Return whether a Host header names an allowed host.

    Args:
        host: With or without a port.
        allowed: Names; `*` allows every host, `*.example.com` every subdomain.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:  # half an IPv6 address
        return False
    return any(
        pattern in ("*", name) or (pattern.startswith("*.") and name.endswith(pattern[1:]))
        for pattern in map(str.lower, allowed)
    )
