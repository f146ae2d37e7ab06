"""A server in the shape of OpenAI's, and a page to ask videos questions.

    python -m tpo_jax.serve --checkpoint=DIR --media_folders=videos [--compare=DIR2]

Prints the page's address when it is ready; an interrupt ends it. `TPO_JAX_API_KEY` in the
environment, if set, is the key that clients must send. See `docs/serve.md`.
"""

import os
import socket
import warnings
from pathlib import Path

from absl import flags

from tpo_jax.errors import InputError, run_command
from tpo_jax.io.paths import define_path, define_paths
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.serving.settings import Settings
from tpo_jax.video import sampling

_DEFAULT = Settings()
_CHECKPOINT = define_path("checkpoint", None, "Model directory.", required=True)
_COMPARE = define_path("compare", None, "A second one, for the page's other half.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen at; 0.0.0.0: every one.")
_PORT = flags.DEFINE_integer("port", 8000, "Port; 0: any free one.", 0, 65535)
_ALLOWED_HOSTS = flags.DEFINE_list(
    "allowed_hosts",
    None,
    "Names that clients may call the server by; *: any. Default: --host and localhost.",
)
_FOLDERS = define_paths("media_folders", [], "Folders whose files requests may name.")
_ALLOW_URLS = flags.DEFINE_boolean(
    "allow_urls", False, "Whether http addresses are fetched, from the public internet only."
)
_MAX_UPLOAD_MB = flags.DEFINE_integer(
    "max_upload_mb", _DEFAULT.max_upload_mb, "Largest body of a request and file fetched.", 1
)
_MEDIA_SECONDS = flags.DEFINE_float(
    "media_seconds",
    _DEFAULT.media_seconds,
    "Longest that reading a body, fetching or decoding a file may take.",
    0.1,
)
_DECODE_MEMORY_MB = flags.DEFINE_integer(
    "decode_memory_mb", _DEFAULT.decode_memory_mb, "Memory of a process that decodes.", 512
)
_SAMPLING = flags.DEFINE_enum(
    "sampling", _DEFAULT.sampling, sampling.RULES, "Which frames are sampled."
)
_NUM_FRAMES = flags.DEFINE_integer(
    "num_frames", _DEFAULT.num_frames, "Frames sampled where a request does not say.", 1
)
_MAX_FRAMES = flags.DEFINE_integer("max_frames", _DEFAULT.max_frames, "Most it may ask for.", 1)
_VIDEO_OF_IMAGES = flags.DEFINE_integer(
    "video_of_images",
    _DEFAULT.video_of_images,
    "So many images or more in one message are the frames of a video; 0: never.",
    0,
)
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", _DEFAULT.max_new_tokens, "Longest answer, whatever a request asks for.", 1
)
_MAX_BATCH = flags.DEFINE_integer(
    "max_batch", _DEFAULT.max_batch, "Questions answered at a time; 1: one after the other.", 1
)
_WAIT_MS = flags.DEFINE_float(
    "wait_ms", _DEFAULT.wait_ms, "How long a question waits for others to join it.", 0
)
_MAX_WAITING = flags.DEFINE_integer(
    "max_waiting", _DEFAULT.max_waiting, "Questions that may wait; more are refused.", 1
)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute dtype.")
KEY = "TPO_JAX_API_KEY"
CONNECTIONS_OVER_WAITING = 4
GRACE_SECONDS = 10


def read_settings() -> Settings:
    """The flags. Raises `InputError` for what does not go together."""
    for folder in _FOLDERS.value:
        if not Path(folder).is_dir():
            raise InputError(f"--media_folders: {folder} is no directory")
    if _NUM_FRAMES.value > _MAX_FRAMES.value:
        raise InputError(f"--num_frames={_NUM_FRAMES.value} is above --max_frames")
    local = ["localhost", "127.0.0.1", _HOST.value]
    return Settings(
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
    """The socket of `--host` and `--port`. Raises `InputError` where it cannot be had."""
    family = socket.AF_INET6 if ":" in _HOST.value else socket.AF_INET
    try:
        return socket.create_server((_HOST.value, _PORT.value), family=family)
    except OSError as error:
        given, reason = f"--host={_HOST.value} --port={_PORT.value}", str(error.strerror)
        raise InputError(f"{given}: {reason.partition(' (')[0]}") from error


def main() -> None:
    """Serves until it is told to stop."""
    try:
        import uvicorn

        from tpo_jax.serving.app import build_app
        from tpo_jax.serving.connections import Connection
        from tpo_jax.serving.models import load, names
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed; pip install 'tpo_jax[serve]'") from error
    settings = read_settings()
    directories = [str(path) for path in (_CHECKPOINT.value, _COMPARE.value) if path]
    called = names(directories)
    if len(called) < len(directories):
        raise InputError(f"--compare={_COMPARE.value} is --checkpoint")
    # JAX warns of every child; the decoders' run another program at once, which is safe.
    warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
    with listen() as listening:  # first: loading may take minutes
        mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1, "context": -1})
        models = [
            load(directory, name, settings.max_new_tokens, _DTYPE.value, mesh)
            for directory, name in zip(directories, called, strict=True)
        ]
        app = build_app(models, settings)
        config = uvicorn.Config(
            app,
            http=Connection,
            log_level="warning",
            access_log=False,
            limit_concurrency=CONNECTIONS_OVER_WAITING * settings.max_waiting,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        print(f"http://{_HOST.value}:{listening.getsockname()[1]}", flush=True)
        uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    run_command(main)
