"""The HTTP application: OpenAI's endpoints, the page, and the endpoints of the page."""

import asyncio
import base64
import hmac
import io
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tpo_jax.serving import protocol
from tpo_jax.serving.batching import Engine
from tpo_jax.serving.chat import Chat, find_model
from tpo_jax.serving.decoder import Decoder
from tpo_jax.serving.errors import ApiError
from tpo_jax.serving.intake import Intake, need_type
from tpo_jax.serving.media import Media
from tpo_jax.serving.metrics import Metrics
from tpo_jax.serving.models import Model
from tpo_jax.serving.settings import Settings

PAGE = Path(__file__).parent / "page"
ASSETS = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}
WITHOUT_KEY = (*ASSETS, "/health")
# The page runs this server's own files only, and no other page may frame it.
PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; media-src blob:; "
    "frame-ancestors 'none'; form-action 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
THUMBNAIL = 224  # pixels, at most


class AccessControl:
    """ASGI middleware: checks host name and API key, counts responses by path and status."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, paths: Sequence[str]):
        self.app, self.metrics, self.paths = app, metrics, paths
        self.hosts = settings.hosts
        self.expected = f"Bearer {settings.api_key}".encode() if settings.api_key else b""

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
        given = headers.get(b"authorization", b"")
        if (
            self.expected
            and path not in WITHOUT_KEY
            and not hmac.compare_digest(given, self.expected)
        ):
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


def build_app(models: Sequence[Model], settings: Settings) -> Starlette:
    """Return the application; its state has `metrics` and `engine`.

    Args:
        models: The page shows the first one on the left.
        settings: Limits and defaults.
    """
    hosted, metrics = {model.name: model for model in models}, Metrics()
    engine = Engine(metrics, settings.max_batch, settings.wait_ms, settings.max_waiting)
    media = Media(settings)
    intake = Intake(settings, media, Decoder(settings))
    started = int(time.time())

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engine.start()
        try:
            yield
        finally:
            await asyncio.to_thread(engine.stop)
            await intake.close()

    async def list_models(request: Request) -> Response:
        kept = {"object": "model", "created": started, "owned_by": "tpo_jax"}
        listed = [{"id": name, **kept} for name in hosted]
        return JSONResponse({"object": "list", "data": listed})

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def show_metrics(request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    async def asset(request: Request) -> Response:
        return FileResponse(PAGE / ASSETS[request.url.path], headers=PAGE_HEADERS)

    async def page_settings(request: Request) -> Response:
        names = ("num_frames", "max_frames", "max_new_tokens", "max_upload_mb")
        limits = {name: getattr(settings, name) for name in names}
        videos = await asyncio.to_thread(media.listed)
        return JSONResponse({"models": list(hosted), "videos": videos, **limits})

    async def upload(request: Request) -> Response:
        need_type(request, "application/octet-stream")
        with intake.reserved(request):
            return JSONResponse({"url": await media.upload(intake.body(request))})

    async def frames(request: Request) -> Response:
        with intake.reserved(request):
            body = await intake.json(request)
            model = find_model(hosted, protocol.text(body, "model"))
            part = protocol.Part("video", protocol.text(body, "url"), "url")
            asked = (settings.num_frames, 1, settings.max_frames)
            visual = await intake.look(model, (part,), protocol.number(body, "num_frames", *asked))
        sources = await asyncio.to_thread(lambda: [*map(_data_url, visual.frames)])
        shown = [
            {"time": when, "src": src} for when, src in zip(visual.times, sources, strict=True)
        ]
        return JSONResponse({"duration": visual.duration, "frames": shown})

    answer = Chat(hosted, settings, engine, intake, metrics).answer
    routes = [
        Route("/v1/chat/completions", answer, methods=["POST"]),
        Route("/v1/models", list_models),
        Route("/health", health),
        Route("/metrics", show_metrics),
        Route("/page/settings", page_settings),
        Route("/page/uploads", upload, methods=["POST"]),
        Route("/page/frames", frames, methods=["POST"]),
        *(Route(path, asset) for path in ASSETS),
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
    return ApiError(error.status_code, f"{request.url.path}: {error.detail}").response()


async def _failure(request: Request, error: Exception) -> Response:
    return ApiError(500, "internal error; see the server's log").response()


def _data_url(frame: np.ndarray) -> str:
    image = Image.fromarray(frame)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(packed.getvalue()).decode()}"
