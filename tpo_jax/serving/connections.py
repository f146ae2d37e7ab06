"""Connections with limits: on the time of idle ones, on the number of all."""

import asyncio

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from tpo_jax.serving.errors import ApiError

SECONDS = 10.0  # from the connection, or the last response, to the end of the next headers


class Connection(H11Protocol):
    """uvicorn's protocol, but closes connections whose headers do not arrive in time.

    Connections beyond `limit_concurrency` get an error in OpenAI's format.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection and start the wait for its first request."""
        super().connection_made(transport)
        self.loop.call_later(SECONDS, self._close_if_idle, None)
        limit, self.limit_concurrency = self.limit_concurrency, None  # its refusal is plain text
        if limit and len(self.connections) > limit:
            self.app = _refuse

    def on_response_complete(self) -> None:
        """Start the wait for the next request."""
        answered = self.cycle
        super().on_response_complete()
        self.loop.call_later(SECONDS, self._close_if_idle, answered)

    def _close_if_idle(self, answered: object) -> None:
        if self.cycle is answered:
            self.transport.close()


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    error = ApiError(503, "too many connections; try again later", "busy")
    await error.response()(scope, receive, send)
