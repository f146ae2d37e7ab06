"""Untrusted media: URLs into the local network, slow files, large bodies, uploads."""

import asyncio
import contextlib
import dataclasses
import functools
import io
import json
import threading
import time
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
from tpo_jax.serving.messages import MediaPart
from tpo_jax.serving.settings import MB, ServerSettings

KIND = [(b"content-type", b"application/json")]


@pytest.fixture
def site():
    """A web server: `/file`, also called `/é`, `/slow`, `/loop`, and redirects from `/to?URL`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/slow":  # two seconds of a header
                with contextlib.suppress(OSError):
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nname: ")
                    for _ in range(40):
                        self.wfile.write(b"x")
                        time.sleep(0.05)
                    self.wfile.write(b"\r\n\r\n")
                return
            if self.path in ("/file", "/%C3%A9"):
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

    def get(url, limit=MB, allowed=lambda ip: ip == "127.0.0.1", seconds=10):
        fetch(url, target, limit, seconds, allowed)
        return target.read_bytes()

    assert get(f"{site}/file") == get(f"{site}/to?/file") == get(f"{site}/é") == b"bytes"
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
        (400, "too long", f"{site}/slow", {"seconds": 0.3}),
        (400, "not a valid URL", f"{site}/to?http://[::1", {}),
        (400, "not a valid URL", "http://\ud800/", {}),
    ]
    for status, message, url, more in wrong:
        with pytest.raises(ApiError, match=message) as caught:
            get(url, **more)
        assert caught.value.status == status


def test_a_name_is_looked_up_in_ascii(tmp_path, monkeypatch) -> None:
    asked = []

    def absent(host, port, **more):
        asked.append((host, port))
        raise OSError

    monkeypatch.setattr("socket.getaddrinfo", absent)
    for place in ("münchen.example:8080", "user:word@münchen.example:8080"):
        with pytest.raises(ApiError, match="does not resolve"):
            fetch(f"http://{place}/vidéo.mp4", tmp_path / "file", MB, 10)
    assert asked == [("xn--mnchen-3ya.example", 8080)] * 2


@pytest.mark.parametrize(
    "address",
    [
        *("10.0.0.1", "127.0.0.1", "169.254.169.254", "::1", "fe80::1", "::ffff:10.0.0.1"),
        # Of IPv6, these stand for addresses of IPv4 or of a site.
        *("64:ff9b::a9fe:a9fe", "2002:7f00:1::", "::127.0.0.1", "fec0::1", "fd00::1"),
    ],
)
def test_local_addresses_are_not_public(address) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808"])
def test_addresses_of_the_internet_are_public(address) -> None:
    assert is_public(address)


def test_slow_downloads_keep_no_other_work_waiting(monkeypatch) -> None:
    free = threading.Event()

    def slow(url, target, *limits):
        free.wait(60)
        target.write_bytes(b"bytes")

    async def run():
        monkeypatch.setattr("tpo_jax.serving.media.fetch", slow)
        media = Media(ServerSettings(allow_urls=True))
        part = MediaPart("video", "http://slow.example/", "url")

        async def download():
            async with media.files((part,)) as files:
                return files[0].path.read_bytes()

        downloads = [asyncio.create_task(download()) for _ in range(50)]
        await asyncio.sleep(0.1)
        await asyncio.wait_for(asyncio.to_thread(int), 30)
        assert not any(task.done() for task in downloads)
        free.set()
        assert await asyncio.gather(*downloads) == [b"bytes"] * 50
        media.close()

    asyncio.run(run())


def test_reasons_name_pictures_and_no_place(tmp_path, monkeypatch) -> None:
    (tmp_path / "frames").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "frames/0.png")
    request = {"kind": "video", "paths": [str(tmp_path / "frames")]}
    request |= {"rule": "uniform", "num_frames": 1, "family": "llava_qwen"}
    request["config"] = dataclasses.asdict(families.preset("tiny_longva"))

    def reason(request=request):
        out = io.BytesIO()
        decode_process.answer(json.dumps(request).encode(), out)
        return json.loads(out.getvalue())["error"]

    with monkeypatch.context() as patched:
        patched.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        assert "exceeds limit" in reason() and str(tmp_path) not in reason()
        whole = request | {"kind": "frames", "paths": [str(tmp_path / "frames/0.png")]}
        assert reason(whole) == "has a picture of more than 50000000 pixels"
    (tmp_path / "frames/0.png").write_text("no picture")
    assert "'0.png'" in reason() and str(tmp_path) not in reason()


def test_a_directory_of_frames(tmp_path) -> None:
    frames = tmp_path / "media/frames"
    frames.mkdir(parents=True)
    Image.new("RGB", (4, 4), "red").save(frames / "0.png")
    media = Media(ServerSettings(folders=(tmp_path / "media",)))
    before = media.local(str(frames))
    assert media.local(str(frames)) == before
    # Overwritten in place, which leaves the directory as it was.
    Image.new("RGB", (4, 4), "lime").save(frames / "0.png")
    assert media.local(str(frames)) != before
    Image.new("RGB", (4, 4), "blue").save(tmp_path / "outside.png")
    (frames / "1.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(ApiError, match="inside --media_folders"):
        media.local(str(frames))
    media.close()


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
