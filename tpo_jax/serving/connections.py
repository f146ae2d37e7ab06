"""Connections that take their time: closed, so that they do not keep the places of others."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

SECONDS = 10.0  # from the connection, or the last answer, to the end of the next headers


class Connection(H11Protocol):
    """uvicorn's protocol, which waits for ever for headers that do not end."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """uvicorn's, and the start of the wait for the first request."""
        super().connection_made(transport)
        self.loop.call_later(SECONDS, self._close_unless_asked, None)

    def on_response_complete(self) -> None:
        """uvicorn's, and the start of the wait for the next one."""
        answered = self.cycle
        super().on_response_complete()
        self.loop.call_later(SECONDS, self._close_unless_asked, answered)

    def _close_unless_asked(self, answered: object) -> None:
        if self.cycle is answered:
            self.transport.close()
