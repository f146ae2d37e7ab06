"""Errors in the format of OpenAI's API."""

from collections.abc import Mapping

from starlette.responses import JSONResponse


class ApiError(Exception):
    """An error reported to a client.

    Args:
        status: HTTP status.
        message: One line.
        code: OpenAI's short name of the error.
        param: The field of the request that is wrong.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> dict:
        """Return the JSON object, also sent as the last event of a failing stream."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error")
        return {
            "error": {
                "message": self.message,
                "type": "server_error" if self.status >= 500 else kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self, headers: Mapping[str, str] | None = None) -> JSONResponse:
        """Return the response; the rest of the request is not read."""
        closing = {"connection": "close", **(headers or {})}
        return JSONResponse(self.body(), self.status, headers=closing)
