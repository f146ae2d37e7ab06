"""The page's files and the endpoints that only the page uses."""

import asyncio
import base64
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from tpo_jax.serving import fields
from tpo_jax.serving.chat import find_model
from tpo_jax.serving.errors import ApiError
from tpo_jax.serving.intake import Intake, need_type
from tpo_jax.serving.messages import MediaPart, Shown
from tpo_jax.serving.models import ServedModel
from tpo_jax.serving.settings import ServerSettings

FOLDER = Path(__file__).parent / "page"
ASSETS = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}
# The page runs this server's own files only, and no other page may frame it or embed its videos.
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; media-src 'self' blob:; "
    "frame-ancestors 'none'; form-action 'none'; base-uri 'none'",
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
THUMBNAIL = 224  # pixels, at most


class PageApi:
    """Handlers of the page's files, settings, videos, uploads and frames."""

    def __init__(self, models: Mapping[str, ServedModel], settings: ServerSettings, intake: Intake):
        self.models, self.settings, self.intake = models, settings, intake

    def routes(self) -> list[Route]:
        """Return the routes of all handlers."""
        return [
            Route("/page/settings", self.page_settings),
            Route("/page/uploads", self.upload, methods=["POST"]),
            Route("/page/video", self.video),
            Route("/page/frames", self.frames, methods=["POST"]),
            *(Route(path, self.asset) for path in ASSETS),
        ]

    async def asset(self, request: Request) -> Response:
        """Send one of the page's files."""
        return FileResponse(FOLDER / ASSETS[request.url.path], headers=HEADERS)

    async def page_settings(self, request: Request) -> Response:
        """Send models, videos and limits."""
        names = ("num_frames", "max_frames", "max_new_tokens", "max_upload_mb")
        limits = {name: getattr(self.settings, name) for name in names}
        listed, more = await asyncio.to_thread(self.intake.media.listed)
        videos = [{"name": name, "url": f"media:{name}"} for name in listed]
        found = {"videos": videos, "more_videos": more}
        return JSONResponse({"models": list(self.models), **found, **limits})

    async def video(self, request: Request) -> Response:
        """Send a listed video, whole or the range that a player asks for."""
        scheme, _, name = request.query_params.get("url", "").partition(":")
        if scheme != "media":
            raise ApiError(404, "no such video", "not_found")
        path = await asyncio.to_thread(self.intake.media.video, name)
        return FileResponse(path, headers=HEADERS)

    async def upload(self, request: Request) -> Response:
        """Store an uploaded file; send its URL."""
        need_type(request, "application/octet-stream")
        with self.intake.reserved(request):
            url = await self.intake.media.upload(self.intake.body(request))
        return JSONResponse({"url": url})

    async def frames(self, request: Request) -> Response:
        """Send the frames that a model would see of a video, with their times."""
        with self.intake.reserved(request):
            body = await self.intake.json(request)
            model = find_model(self.models, fields.text(body, "model"))
            part = MediaPart("video", fields.text(body, "url"), "url")
            default, most = self.settings.num_frames, self.settings.max_frames
            count = fields.number(body, "num_frames", default, 1, most)
            visual = await self.intake.look(model, Shown("video", (part,)), count)
        sources = await asyncio.to_thread(lambda: [*map(_data_url, visual.frames)])
        frames = [
            {"time": time, "src": src} for time, src in zip(visual.times, sources, strict=True)
        ]
        return JSONResponse({"duration": visual.duration, "frames": frames})


def _data_url(frame: np.ndarray) -> str:
    image = Image.fromarray(frame)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(packed.getvalue()).decode()}"
