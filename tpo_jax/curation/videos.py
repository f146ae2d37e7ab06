"""The videos of a run: listed by path, probed one by one."""

from pathlib import Path, PurePosixPath

from tpo_jax.curation.units import Unit
from tpo_jax.data import folders
from tpo_jax.errors import InputError
from tpo_jax.io.paths import check_folder
from tpo_jax.video import decode, sampling


def list_videos(folder: Path, limit: int) -> list[Unit]:
    """Return a unit for every file and folder of images under `folder`, or every video of a store,
    sorted by path.

    The id is the path without suffix. A second video with the same id gets its path as id and the
    first one as `twin`; the stage `videos` fails it.

    Args:
        folder: Searched recursively; hidden files are skipped.
        limit: Return only the first so many; 0: all.

    Raises:
        InputError: The folder does not exist or holds nothing.
    """
    check_folder("videos.folder", folder)
    units: dict[str, Unit] = {}
    for video in folders.names_in(folder):
        suffix = "" if (folder / video).is_dir() else PurePosixPath(video).suffix
        key, twin = video.removesuffix(suffix), ""
        if first := units.get(key):
            key, twin = video, first.video
        units[key] = Unit(id=key, video=video, twin=twin)
    if not units:
        raise InputError(f"videos.folder={folder}: the folder is empty")
    return list(units.values())[: limit or None]


def probe_video(path: Path) -> decode.VideoInfo:
    """Return frame count, rate, size and duration of a video, stored or not, or folder of images.

    Raises:
        ValueError: It cannot be read, or has only one frame.
    """
    try:
        info = _probe_images(path) if path.is_dir() else decode.probe(folders.video_at(path))
    except (decode.VideoError, OSError) as error:
        raise ValueError(str(getattr(error, "reason", None) or error)) from error
    if info.num_frames < 2:
        raise ValueError("has only one frame; curation needs at least two")
    return info


def _probe_images(folder: Path) -> decode.VideoInfo:
    frames, _, duration = sampling.read_frames(folder, "uniform", 1)
    count = sum(p.suffix.lower() in sampling.IMAGE_SUFFIXES for p in folder.iterdir())
    height, width = frames.shape[1:3]
    return decode.VideoInfo(count, sampling.DIRECTORY_FPS, width, height, duration)
