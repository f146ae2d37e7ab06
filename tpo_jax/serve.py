"""Serve models with OpenAI's chat API, and a page for questions about videos.

    python -m tpo_jax.serve --checkpoint=DIR --media_folders=videos [--compare=DIR2]

Prints the page's address when it is ready; stops on an interrupt. `TPO_JAX_API_KEY` in the
environment, if set, is the API key that clients must send. See `docs/serve.md`.
"""

import os
import socket
import warnings
from pathlib import Path

from absl import flags

from tpo_jax.errors import InputError, run_command
from tpo_jax.inference.flags import define_model
from tpo_jax.io.paths import check_folder, define_path, define_paths
from tpo_jax.parallel.programs import keep_programs
from tpo_jax.serving.settings import ServerSettings
from tpo_jax.video import sampling

_DEFAULT = ServerSettings()
_MODEL = define_model(dtype="float32")
_COMPARE = define_path(
    "compare",
    None,
    "A second model, shown beside the first; may be --checkpoint again, without --adapters.",
)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; 0.0.0.0: all interfaces.")
_PORT = flags.DEFINE_integer("port", 8000, "Port; 0: any free port.", 0, 65535)
_ALLOWED_HOSTS = flags.DEFINE_list(
    "allowed_hosts",
    None,
    "Host names that requests may use; *: any. Default: --host and localhost.",
)
_FOLDERS = define_paths("media_folders", [], "Folders whose files requests may use.")
_ALLOW_URLS = flags.DEFINE_boolean(
    "allow_urls", False, "Fetch http and https URLs, from the public internet only."
)
_MAX_UPLOAD_MB = flags.DEFINE_integer(
    "max_upload_mb", _DEFAULT.max_upload_mb, "Largest request body and fetched file, MB.", 1
)
_MEDIA_SECONDS = flags.DEFINE_float(
    "media_seconds",
    _DEFAULT.media_seconds,
    "Time limit for reading a body, fetching or decoding a file, seconds.",
    0.1,
)
_DECODE_MEMORY_MB = flags.DEFINE_integer(
    "decode_memory_mb", _DEFAULT.decode_memory_mb, "Memory limit of a decoding process, MB.", 512
)
_SAMPLING = flags.DEFINE_enum("sampling", _DEFAULT.sampling, sampling.RULES, "Frame sampling rule.")
_NUM_FRAMES = flags.DEFINE_integer(
    "num_frames", _DEFAULT.num_frames, "Frames sampled if the request sets none.", 1
)
_MAX_FRAMES = flags.DEFINE_integer(
    "max_frames", _DEFAULT.max_frames, "Most frames of a request.", 1
)
_VIDEO_OF_IMAGES = flags.DEFINE_integer(
    "video_of_images",
    _DEFAULT.video_of_images,
    "Treat this many images or more in one message as the frames of a video; 0: never.",
    0,
)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens",
    _DEFAULT.max_new_tokens,
    "Longest answer in tokens; caps what requests ask for.",
    1,
)
_MAX_BATCH = flags.DEFINE_integer(
    "max_batch", _DEFAULT.max_batch, "Largest batch of questions; 1: no batching.", 1
)
_WAIT_MS = flags.DEFINE_float(
    "wait_ms",
    _DEFAULT.wait_ms,
    "How long a question waits for a batch, milliseconds.",
    0,
)
_MAX_WAITING = flags.DEFINE_integer(
    "max_waiting", _DEFAULT.max_waiting, "Longest queue of questions; more are refused.", 1
)
_WARM_UP = flags.DEFINE_boolean(
    "warm_up",
    None,
    "Compile the programs of a question about a video before the server is ready. Default: where "
    "there is a TPU or a GPU.",
)
KEY = "TPO_JAX_API_KEY"
CONNECTIONS_OVER_WAITING = 4
GRACE_SECONDS = 10


def read_settings() -> ServerSettings:
    """Return the settings that the flags give; raise `InputError` if they conflict."""
    for folder in _FOLDERS.value:
        check_folder("--media_folders", Path(folder))
    if _NUM_FRAMES.value > _MAX_FRAMES.value:
        raise InputError(f"--num_frames={_NUM_FRAMES.value} is above --max_frames")
    local = ["localhost", "127.0.0.1", _HOST.value]
    return ServerSettings(
        folders=tuple(map(Path, _FOLDERS.value)),
        allow_urls=_ALLOW_URLS.value,
        api_key=os.environ.get(KEY, ""),
        hosts=tuple(_ALLOWED_HOSTS.value or dict.fromkeys(local)),
        max_upload_mb=_MAX_UPLOAD_MB.value,
        media_seconds=_MEDIA_SECONDS.value,
        decode_memory_mb=_DECODE_MEMORY_MB.value,
        sampling=_SAMPLING.value,
        num_frames=_NUM_FRAMES.value,
        max_frames=_MAX_FRAMES.value,
        video_of_images=_VIDEO_OF_IMAGES.value,
        max_new_tokens=_MAX_NEW_TOKENS.value,
        max_batch=_MAX_BATCH.value,
        wait_ms=_WAIT_MS.value,
        max_waiting=_MAX_WAITING.value,
    )


def listen() -> socket.socket:
    """Return a socket on `--host` and `--port`; raise `InputError` if that fails."""
    family = socket.AF_INET6 if ":" in _HOST.value else socket.AF_INET
    try:
        return socket.create_server((_HOST.value, _PORT.value), family=family)
    except OSError as error:
        given, reason = f"--host={_HOST.value} --port={_PORT.value}", str(error.strerror)
        raise InputError(f"{given}: {reason.partition(' (')[0]}") from error


def main() -> None:
    """Serve until interrupted."""
    try:
        import jax
        import uvicorn

        from tpo_jax.serving.app import build_app
        from tpo_jax.serving.connections import Connection
        from tpo_jax.serving.models import Source, load, names, warm_up
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed; pip install 'tpo_jax[serve]'") from error
    settings = read_settings()
    sources = [
        Source(
            _MODEL.checkpoint.value,
            _MODEL.tower.value,
            _MODEL.adapters.value,
            _MODEL.weights.value,
        )
    ]
    if _COMPARE.value:
        sources.append(Source(_COMPARE.value, weights=_MODEL.weights.value))
    called = names([str(source.adapters or source.checkpoint) for source in sources])
    if len(called) < len(sources):
        raise InputError(f"--compare={_COMPARE.value} is the same directory as --checkpoint")
    # JAX warns about forks; decoding processes execute another program at once, which is safe.
    warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
    keep_programs(_MODEL.compilation_cache.value)
    with listen() as listening:  # before loading, which may take minutes
        models = [
            load(source, name, settings.max_new_tokens, _MODEL.dtype.value)
            for source, name in zip(sources, called, strict=True)
        ]
        if jax.default_backend() != "cpu" if _WARM_UP.value is None else _WARM_UP.value:
            for model in models:
                warm_up(model, settings.num_frames)
        app = build_app(models, settings)
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",  # otherwise an upgrade request is answered with advice to install a library
            log_level="warning",
            access_log=False,
            limit_concurrency=CONNECTIONS_OVER_WAITING * settings.max_waiting,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        print(f"http://{_HOST.value}:{listening.getsockname()[1]}", flush=True)
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    run_command(main)
