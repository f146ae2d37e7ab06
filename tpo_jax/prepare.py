"""Prepare preference pairs and their videos as shards that training reads.

    python -m tpo_jax.prepare --pairs=pairs.jsonl --videos=videos --output=shards [--num_frames=32]
    python -m tpo_jax.prepare --videos=videos --output=store

Standard output says what the shards hold. Pairs that cannot be used are listed with the reason in
`rejected.jsonl` beside the shards. Run it again to resume an interrupted run.

Without `--pairs` all videos of the folder are stored; what takes a folder of videos (`score`,
`evaluate run`, `curate`) or a video (`generate`) reads them from there, as `store/cooking.mp4`.
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from absl import flags

from tpo_jax.data import archives, exports, preparation
from tpo_jax.data.columns import parse_columns
from tpo_jax.data.shards import FRAME_ENCODINGS
from tpo_jax.errors import InputError, run_command
from tpo_jax.io.paths import define_path, define_place, fetched, in_bucket
from tpo_jax.video import sampling
from tpo_jax.video.proxy import LEAST_SIDE

_PAIRS = define_place(
    "pairs",
    None,
    "List of pairs: .jsonl, .json, .csv, .parquet, .yaml, a LLaVA-NeXT mixture, or a folder of "
    "Hugging Face datasets. None: the videos are stored without pairs.",
)
_VIDEOS = define_place(
    "videos",
    None,
    "Folder the pairs' videos lie in, or a store of them; may be in a bucket, gs://…",
    required=True,
)
_COLUMN = flags.DEFINE_multi_string(
    "column", [], "role=name: which column of the list plays a role, as video=clip; repeatable."
)
_STRUCK = define_path("struck", None, "File of the ids of pairs to exclude, one a line.")
_ARCHIVE = define_path(
    "archive",
    None,
    "tar or zip of the videos, unpacked into --videos first; of a split one the beginning of its "
    "parts' names, as videos.part.",
)
_UNPACKED_GB = flags.DEFINE_float(
    "unpacked_gb", 0.0, "Most that --archive may unpack to; 0: three times its size.", lower_bound=0
)
_OUTPUT = define_path("output", None, "Directory to write.", required=True)
_NUM_FRAMES = flags.DEFINE_integer("num_frames", 32, "Frames sampled per video.", lower_bound=1)
_SAMPLING = flags.DEFINE_enum("sampling", "uniform", sampling.RULES, "Which frames are sampled.")
_FRAMES = flags.DEFINE_enum(
    "frames",
    "clip",
    FRAME_ENCODINGS,
    "What is stored of a video: its encoded packets, exact and good for any number of frames, or "
    "the sampled frames as PNG (exact) or JPEG.",
)
_PROXY = flags.DEFINE_integer(
    "proxy",
    0,
    "Encode videos again, pixels of the shorter side, with a key frame a second: not exact, for "
    "fast training from slow disks; 0: store them as they are.",
    lower_bound=0,
)
_NUM_SHARDS = flags.DEFINE_integer(
    "num_shards", 0, "Number of shards of pairs; 0: one for every 10,000.", lower_bound=0
)
_SHARD_MB = flags.DEFINE_integer(
    "shard_mb", 256, "Megabytes of video files at which a shard of videos is full.", lower_bound=1
)
_WORKERS = flags.DEFINE_integer("workers", os.cpu_count() or 1, "Processes.", lower_bound=1)
_BEAM = flags.DEFINE_string(
    "beam",
    None,
    "Work as an Apache Beam pipeline with these options, as '--runner=DataflowRunner …'; empty: on "
    "Beam's local runner. Workers that do not see --output need a --temp_location in a bucket.",
)
_EXPORT = flags.DEFINE_multi_enum(
    "export",
    [],
    list(exports.FORMATS),
    "Write the pairs as ms-swift or TRL read them, too: pairs_swift.jsonl, pairs_trl.jsonl in "
    "--output; repeatable.",
)
_STRICT = flags.DEFINE_bool("strict", False, "Stop at the first pair that cannot be used.")


def check_flags() -> None:
    """Raise `InputError` for flags that do not go together."""
    for flag in (_COLUMN, _STRUCK, _EXPORT, _NUM_SHARDS):
        if flag.value and _PAIRS.value is None:
            raise InputError(f"--{flag.name} is for --pairs, which are missing")
    if _PROXY.value and _FRAMES.value != "clip":
        raise InputError(f"--proxy goes with --frames=clip, not with --frames={_FRAMES.value}")
    if 0 < _PROXY.value < LEAST_SIDE:
        raise InputError(f"--proxy={_PROXY.value}: a proxy needs {LEAST_SIDE} pixels at least")
    if _ARCHIVE.value and in_bucket(_VIDEOS.value):
        raise InputError("--archive unpacks onto this machine; name a folder of it as --videos")
    if _EXPORT.value:
        exports.check_folder(_VIDEOS.value)


def print_summary(manifest: dict[str, Any]) -> None:
    """Print what the shards hold."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in manifest["kinds"].items())
    if count := manifest["kinds"].get("video"):
        print(
            f"{count} pairs are one answer on two videos: objective.video_weight and "
            "data.video_pairs train on them, see docs/data.md",
            file=sys.stderr,
        )
    pairs = "" if _PAIRS.value is None else f"{manifest['pairs']} pairs ({kinds}) of "
    print(
        f"{_OUTPUT.value}: {pairs}{manifest['videos']} videos, "
        f"{len(manifest['shards']) + len(manifest['store']['shards'])} shards; "
        f"{manifest['rejected']} {'pairs' if pairs else 'files'} rejected"
        + (f", see {preparation.REJECTED}" if manifest["rejected"] else "")
        + (
            f"; {count} repeated ids got a suffix"
            if (count := manifest.get("repeated_ids"))
            else ""
        )
    )


def main() -> None:
    """Prepare the shards and print what they hold."""
    columns = parse_columns(_COLUMN.value)
    check_flags()
    if _ARCHIVE.value:
        limit = round(_UNPACKED_GB.value * 1e9)
        archives.unpack(Path(_ARCHIVE.value), Path(_VIDEOS.value), limit)
    with fetched(_PAIRS.value) if _PAIRS.value else contextlib.nullcontext() as pairs:
        manifest = preparation.prepare(
            pairs,
            _VIDEOS.value,
            _OUTPUT.value,
            preparation.Settings(_SAMPLING.value, _NUM_FRAMES.value, _FRAMES.value, _PROXY.value),
            preparation.Work(
                _NUM_SHARDS.value, _WORKERS.value, _STRICT.value, _BEAM.value, _SHARD_MB.value
            ),
            columns=columns,
            excluded=_STRUCK.value,
        )
    if _EXPORT.value:
        exports.export(_OUTPUT.value, _VIDEOS.value, _EXPORT.value)
    print_summary(manifest)


if __name__ == "__main__":
    run_command(main)
