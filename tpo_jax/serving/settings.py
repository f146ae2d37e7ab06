"""Limits and defaults of a server."""

import dataclasses
from pathlib import Path

MB = 1 << 20


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """Each field is a flag of `tpo_jax.serve`, whose help explains it; sizes are in MB."""

    folders: tuple[Path, ...] = ()
    allow_urls: bool = False
    api_key: str = ""  # from the environment only
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1")
    max_upload_mb: int = 64
    media_seconds: float = 60.0
    decode_memory_mb: int = 4096
    sampling: str = "uniform"
    num_frames: int = 32
    max_frames: int = 128
    video_of_images: int = 0
    max_new_tokens: int = 512
    max_batch: int = 8
    wait_ms: float = 5.0
    max_waiting: int = 256
