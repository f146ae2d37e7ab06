"""Errors as OpenAI's API words them."""

from starlette.responses import JSONResponse


class ApiError(Exception):
    """What a client is told: an HTTP status, one line, and OpenAI's `code` and `param`."""

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> dict:
        """The JSON object, also sent as the last event of a stream that fails."""
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

    def response(self) -> JSONResponse:
        """The response; what is left of the request is not read."""
        return JSONResponse(self.body(), self.status, headers={"connection": "close"})
