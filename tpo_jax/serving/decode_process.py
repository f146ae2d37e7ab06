"""A process that decodes untrusted media: limited memory, no files written, killed when late.

    python -m tpo_jax.serving.decode_process

Reads one JSON object per line on standard input; the first one holds the limits. Answers each with
a line of JSON and, if that has `bytes`, that many bytes of NumPy's `.npz`. A damaged file may crash
or hang a decoder; in a process of its own it stops nothing else.
"""

import io
import json
import os
import resource
import sys
import warnings
from typing import BinaryIO

import numpy as np
from PIL import Image

from tpo_jax import families
from tpo_jax.data import images
from tpo_jax.errors import InputError
from tpo_jax.models.config import ModelConfig
from tpo_jax.video import sampling
from tpo_jax.video.decode import VideoError
from tpo_jax.video.files import OPEN_OPTIONS

# No format that names other files (playlists) or runs programs (EPS).
IMAGE_FORMATS = ("BMP", "GIF", "JPEG", "MPO", "PNG", "TIFF", "WEBP")
VIDEO_FORMATS = "avi,flv,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,mpeg,mpegts,ogg,asf"
MAX_PIXELS = 50_000_000


def read(request: dict, config: ModelConfig) -> dict[str, np.ndarray]:
    """Return the arrays of a request.

    A video's are `frames` uint8 `[F, *frame_shape]`, `times` float64 `[n]` of the `n` frames that
    were sampled, and `duration`, in seconds; those of images are the fields of `Pictures`.

    Args:
        request: `kind` (video, frames or images), `paths`, and for a video `rule` and `num_frames`.
        config: Of the model, which says how frames are resized.
    """
    paths = request["paths"]
    if request["kind"] == "images":
        pictures = images.read_pictures(paths, config)
        return {**pictures._asdict(), "tokens": np.array(pictures.tokens, np.int64)}
    if request["kind"] == "frames":  # images that are the frames of a video
        opened = []
        for path in paths:
            with Image.open(path) as image:
                opened.append(np.asarray(image.convert("RGB")))
        frames, times, duration = _one_size(opened, config), np.arange(float(len(paths))), 0.0
        return {"frames": frames, "times": times, "duration": np.array(duration)}
    frames, times, duration = sampling.read_frames(paths[0], request["rule"], request["num_frames"])
    rate = sampling.rate_of(times, duration)
    frames = families.of(config).preprocess(frames, config, rate=rate)
    return {"frames": frames, "times": times, "duration": np.array(duration)}


def _one_size(opened: list[np.ndarray], config: ModelConfig) -> np.ndarray:
    """Return images as the frames of one video.

    Raises:
        InputError: they differ in size, and the model does not take frames independently.
    """
    family = families.of(config)
    if len({image.shape for image in opened}) == 1:
        return family.preprocess(np.stack(opened), config)
    if not family.independent_frames:
        raise InputError("the frames of a video must have one size")
    return np.concatenate([family.preprocess(image[None], config) for image in opened])


def answer(line: bytes, out: BinaryIO) -> None:
    """Answer one request; a file that cannot be read is answered with a reason."""
    request = json.loads(line)
    try:
        arrays = read(request, families.named(request["family"]).from_dict(request["config"]))
    except VideoError as error:
        reason = error.reason
    except InputError as error:
        reason = str(error)
    except MemoryError:
        reason = "decoding takes too much memory"
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        reason = f"has a picture of more than {MAX_PIXELS} pixels"
    except Exception as error:  # broken files make the libraries raise nearly anything
        reason = f"cannot be read: {type(error).__name__}"
    else:
        packed = io.BytesIO()
        np.savez(packed, allow_pickle=False, **arrays)
        data = packed.getvalue()
        out.write(json.dumps({"bytes": len(data)}).encode() + b"\n" + data)
        out.flush()
        return
    for path in request["paths"]:
        for shown, instead in ((f"{path}: ", ""), (f"{path}/", ""), (path, "the file")):
            reason = reason.replace(shown, instead)
    out.write(json.dumps({"error": reason}).encode() + b"\n")
    out.flush()


def main() -> None:
    """Answer requests until standard input ends."""
    # What libraries print must not get between the answers.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    memory = json.loads(sys.stdin.buffer.readline())["memory"]
    for what, limit in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (limit, limit))
    OPEN_OPTIONS["format_whitelist"] = VIDEO_FORMATS
    Image.init()
    Image.ID[:] = [name for name in Image.ID if name in IMAGE_FORMATS]
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    for line in sys.stdin.buffer:
        answer(line, out)


if __name__ == "__main__":
    main()
