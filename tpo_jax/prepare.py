"""Preference pairs and their videos become shards that training reads.

    python -m tpo_jax.prepare --pairs=pairs.jsonl --videos=videos --output=shards [--num_frames=32]

Standard output says what the shards hold. Pairs that cannot be used are listed with the reason in
`rejected.jsonl` beside the shards. An interrupted run is continued by running it again.
"""

import os

from absl import flags

from tpo_jax.data import preparation, sampling
from tpo_jax.data.records import FRAME_ENCODINGS
from tpo_jax.errors import run_door

_PAIRS = flags.DEFINE_string(
    "pairs", None, "List of pairs: .jsonl, .json, .csv, .yaml or .yml.", required=True
)
_VIDEOS = flags.DEFINE_string("videos", None, "Folder the pairs' videos lie in.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Directory to write.", required=True)
_NUM_FRAMES = flags.DEFINE_integer("num_frames", 32, "Frames sampled per video.", lower_bound=1)
_SAMPLING = flags.DEFINE_enum("sampling", "uniform", sampling.RULES, "Which frames are sampled.")
_FRAMES = flags.DEFINE_enum(
    "frames",
    "clip",
    FRAME_ENCODINGS,
    "What a record holds: the video file itself, exact and good for any number of frames, or the "
    "sampled frames as PNG (exact) or JPEG.",
)
_NUM_SHARDS = flags.DEFINE_integer(
    "num_shards", 0, "Number of shards; 0: one for every 64 pairs.", lower_bound=0
)
_WORKERS = flags.DEFINE_integer("workers", os.cpu_count() or 1, "Processes.", lower_bound=1)
_STRICT = flags.DEFINE_bool("strict", False, "Stop at the first pair that cannot be used.")


def main() -> None:
    """Prepares the shards and prints what they hold."""
    manifest = preparation.prepare(
        _PAIRS.value,
        _VIDEOS.value,
        _OUTPUT.value,
        preparation.Settings(_SAMPLING.value, _NUM_FRAMES.value, _FRAMES.value),
        num_shards=_NUM_SHARDS.value,
        workers=_WORKERS.value,
        strict=_STRICT.value,
    )
    kinds = ", ".join(f"{count} {kind}" for kind, count in manifest["kinds"].items())
    print(
        f"{_OUTPUT.value}: {manifest['pairs']} pairs ({kinds}) of {manifest['videos']} videos, "
        f"{len(manifest['shards'])} shards; {manifest['rejected']} pairs rejected"
        + (f", see {preparation.REJECTED}" if manifest["rejected"] else "")
    )


if __name__ == "__main__":
    run_door(main)
