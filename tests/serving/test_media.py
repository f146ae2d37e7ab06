"""Untrusted media: URLs into the local network, slow files, large bodies, uploads."""

import asyncio
import contextlib
import dataclasses
import functools
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image
from starlette.requests import Request

from tpo_jax import families
from tpo_jax.errors import InputError
from tpo_jax.serving import decode_process
from tpo_jax.serving.decoder import Cache, MediaDecoder
from tpo_jax.serving.errors import ApiError
from tpo_jax.serving.fetching import fetch, is_public
from tpo_jax.serving.intake import Intake
from tpo_jax.serving.media import Media
from tpo_jax.serving.settings import MB, ServerSettings

KIND = [(b"content-type", b"application/json")]


@pytest.fixture
def site():
    """A web server: `/file`, `/loop`, and redirects from `/to?URL`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/file":
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"bytes")
                return
            target = "/loop" if self.path == "/loop" else self.path.partition("?")[2]
            self.send_response(302)
            self.send_header("location", target)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("preset", ["tiny_longva", "tiny_qwen3_vl"])
def test_frames_of_several_sizes_need_a_model_that_takes_each_alone(preset, tmp_path) -> None:
    config = families.preset(preset)
    paths = [str(tmp_path / f"{width}.png") for width in (30, 40)]
    for width, path in zip((30, 40), paths, strict=True):
        Image.new("RGB", (width, 20)).save(path)
    read = functools.partial(decode_process.read, config=config)
    if families.of(config).independent_frames:
        frames = read({"kind": "frames", "paths": paths})["frames"]
        assert frames.shape == (2, *config.frame_shape)
    else:
        with pytest.raises(InputError, match="must have one size"):
            read({"kind": "frames", "paths": paths})
    same = read({"kind": "frames", "paths": paths[:1] * 2})["frames"]
    assert same.shape == (config.batch_frames(2), *config.frame_shape)


def test_only_public_addresses_are_fetched(site, tmp_path) -> None:
    target = tmp_path / "file"

    def get(url, limit=MB, allowed=lambda ip: ip == "127.0.0.1"):
        fetch(url, target, limit, 10, allowed)
        return target.read_bytes()

    assert get(f"{site}/file") == get(f"{site}/to?/file") == b"bytes"
    elsewhere = site.replace("127.0.0.1", "127.0.0.2")
    wrong = [
        (403, "public", f"{site}/to?{elsewhere}/file", {}),
        (403, "public", f"{site}/file", {"allowed": is_public}),
        (403, "public", site.replace("127.0.0.1", "localhost"), {"allowed": is_public}),
        (403, "public", site.replace("127.0.0.1", "2130706433"), {"allowed": is_public}),
        (400, "redirect", f"{site}/to?file:///etc/hostname", {}),
        (400, "redirects", f"{site}/loop", {}),
        (413, "larger", f"{site}/file", {"limit": 3}),
        (400, "fetched", "http://127.0.0.1:1/", {}),
    ]
    for status, message, url, more in wrong:
        with pytest.raises(ApiError, match=message) as caught:
            get(url, **more)
        assert caught.value.status == status


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "127.0.0.1", "169.254.169.254", "::1", "fe80::1", "::ffff:10.0.0.1"]
)
def test_local_addresses_are_not_public(address) -> None:
    assert not is_public(address)
    assert is_public("8.8.8.8")


def test_a_decoder_past_its_deadline_is_replaced(folder) -> None:
    request = {
        "kind": "video",
        "paths": [str(folder / "media/video.mp4")],
        "rule": "uniform",
        "num_frames": 3,
        "family": "llava_qwen",
        "config": dataclasses.asdict(families.preset("tiny_llava_video")),
    }

    async def run():
        decoder = MediaDecoder(ServerSettings(media_seconds=0.01))
        with pytest.raises(ApiError, match="longer than"):
            await decoder.decode(request)
        decoder.settings = dataclasses.replace(decoder.settings, media_seconds=60)
        arrays = await decoder.decode(request)
        again = await decoder.decode(request)
        await decoder.close()
        small = MediaDecoder(ServerSettings(decode_memory_mb=64))
        with pytest.raises(ApiError):
            await small.decode(request)
        await small.close()
        return arrays, again

    first, second = asyncio.run(run())
    assert first["frames"].shape[0] == 3
    assert all((first[name] == second[name]).all() for name in first)


def test_equal_requests_are_computed_once() -> None:
    made = []

    async def run():
        cache = Cache(size=2)

        async def make(key):
            made.append(key)
            await asyncio.sleep(0.01)
            if key == "bad":
                raise ApiError(400, "bad")
            return key

        for key in ("a", "b", "bad", "bad"):
            got = await asyncio.gather(
                *(cache.get(key, lambda key=key: make(key)) for _ in range(3)),
                return_exceptions=True,
            )
            assert got == [key] * 3 or all(isinstance(error, ApiError) for error in got)

    asyncio.run(run())
    assert made == ["a", "b", "bad", "bad"]


def test_large_bodies_do_not_block_small_ones() -> None:
    piece = b" " * (1 << 16)

    def request(*pieces):
        given = iter(pieces)

        async def receive():
            body = next(given, None)
            return {"type": "http.request", "body": body or b"", "more_body": body is not None}

        return Request({"type": "http", "method": "POST", "headers": KIND}, receive)

    async def run():
        intake = Intake(settings, Media(settings), MediaDecoder(settings))
        with contextlib.ExitStack() as held:
            refused = []
            for large in [request(*[piece] * 15) for _ in range(6)]:
                held.enter_context(intake.reserved(large))
                try:
                    async for _ in intake.body(large):
                        pass
                except ApiError as error:
                    refused.append(error.status)
            small = request(b'{"a": 1}')
            with intake.reserved(small):
                assert await intake.json(small) == {"a": 1}
        last = request(*[piece] * 15)
        with intake.reserved(last):
            assert b"".join([part async for part in intake.body(last)]) == piece * 15
        await intake.close()
        return refused

    settings = ServerSettings(max_upload_mb=1)
    assert asyncio.run(run()) == [429, 429]


def test_old_uploads_are_removed(tmp_path) -> None:
    async def chunks(data):
        yield data

    async def run():
        media = Media(ServerSettings(max_upload_mb=1))
        urls = [await media.upload(chunks(bytes([i]) * MB)) for i in range(6)]
        found = [url for url in urls if url in media._uploads]
        left = [path.name for path in media.temporary.iterdir()]
        media.close()
        return urls, found, left, media.temporary.exists()

    urls, found, left, there = asyncio.run(run())
    assert found == urls[2:]
    assert sorted(f"upload:{name}" for name in left) == sorted(found)
    assert not there


def test_visitors_see_names_and_get_listed_videos_only(tmp_path, monkeypatch) -> None:
    folders = tmp_path / "a/clips", tmp_path / "b/clips"
    for folder in folders:
        (folder / "deep").mkdir(parents=True)
        (folder / "deep/x.mp4").write_bytes(str(folder).encode())
        (folder / "notes.txt").write_text("private")
    (tmp_path / "outside.mp4").touch()
    (folders[0] / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    for given, names in (
        (folders[:1], ["deep/x.mp4"]),
        (folders, ["a/clips/deep/x.mp4", "b/clips/deep/x.mp4"]),
    ):
        media = Media(ServerSettings(folders=given))
        assert media.listed() == (names, False)
        with monkeypatch.context() as patched:
            patched.setattr("tpo_jax.serving.media.LISTED", 1)
            assert media.listed() == (names[:1], len(names) > 1)
        for name, folder in zip(names, given, strict=True):
            assert media.video(name).read_bytes() == str(folder).encode()
        prefix = names[0].removesuffix("deep/x.mp4")
        for wrong in ("notes.txt", "link.mp4", "../../outside.mp4", "/etc/hostname", "deep", "\0"):
            with pytest.raises(ApiError) as caught:
                media.video(prefix + wrong)
            assert caught.value.status in (403, 404) and str(tmp_path) not in caught.value.message
        media.close()
