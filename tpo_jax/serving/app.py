"""The HTTP application: OpenAI's endpoints and the page."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tpo_jax.serving.access import AccessControl
from tpo_jax.serving.batching import Engine
from tpo_jax.serving.chat import Chat, find_model
from tpo_jax.serving.decoder import MediaDecoder
from tpo_jax.serving.errors import ApiError
from tpo_jax.serving.fields import short
from tpo_jax.serving.intake import Intake
from tpo_jax.serving.media import Media
from tpo_jax.serving.metrics import Metrics
from tpo_jax.serving.models import ServedModel
from tpo_jax.serving.page_api import PageApi
from tpo_jax.serving.settings import ServerSettings


def build_app(models: Sequence[ServedModel], settings: ServerSettings) -> Starlette:
    """Return the application; its state has `metrics` and `engine`.

    Args:
        models: The page shows the first one on the left.
        settings: Limits and defaults.
    """
    hosted, metrics = {model.name: model for model in models}, Metrics()
    engine = Engine(metrics, settings.max_batch, settings.wait_ms, settings.max_waiting)
    intake = Intake(settings, Media(settings), MediaDecoder(settings))
    started = int(time.time())

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engine.start()
        try:
            yield
        finally:
            await asyncio.to_thread(engine.stop)
            await intake.close()

    def described(name: str) -> dict:
        return {"id": name, "object": "model", "created": started, "owned_by": "tpo_jax"}

    async def list_models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [described(name) for name in hosted]})

    async def one_model(request: Request) -> Response:
        return JSONResponse(described(find_model(hosted, request.path_params["name"]).name))

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def show_metrics(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    answer = Chat(hosted, settings, engine, intake, metrics).answer
    routes = [
        Route("/v1/chat/completions", answer, methods=["POST"]),
        Route("/v1/models", list_models),
        Route("/v1/models/{name:path}", one_model),
        Route("/health", health),
        Route("/metrics", show_metrics),
        *PageApi(hosted, settings, intake).routes(),
    ]
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(AccessControl, settings, metrics, [route.path for route in routes])],
        exception_handlers={ApiError: _api_error, HTTPException: _http_error, 500: _failure},
    )
    app.state.metrics, app.state.engine = metrics, engine
    return app


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = short(request.url.path)
    return ApiError(error.status_code, f"{path}: {error.detail}").response(error.headers)


async def _failure(request: Request, error: Exception) -> Response:
    return ApiError(500, "internal error; see the server's log").response()
