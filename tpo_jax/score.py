r"""Summed log-probabilities of both answers of every pair of a list.

    python -m tpo_jax.score --checkpoint=DIR --pairs=FILE --videos=DIR --output=FILE.jsonl \
        --num_frames=32

A pair may have `image` or `images`, paths in the same folder, in place of `video`, or none of them.
One line per pair, in the order of the list: `id, chosen_logp, rejected_logp, chosen_tokens,
rejected_tokens`. An answer's tokens are its own, `<|im_end|>` and the newline after it; with
`--prompt_style=dpo_trainer`, also the six of the template that the original trainer labels.
"""

import functools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import flags, logging

from tpo_jax import families
from tpo_jax.checkpoints.models import load_config, load_model
from tpo_jax.data.collate import collate, visual_sizes
from tpo_jax.data.pairs import Pair, Rejection, read_pairs
from tpo_jax.data.processor import Processor
from tpo_jax.data.rows import Row
from tpo_jax.data.tokenizer import load_tokenizer
from tpo_jax.errors import InputError, run_command
from tpo_jax.families.template import STYLES, TIME_INSTRUCTIONS
from tpo_jax.inference.generator import round_up
from tpo_jax.io.files import replacing
from tpo_jax.io.paths import define_path, output_file
from tpo_jax.models.batch import Batch, BatchShape
from tpo_jax.models.config import ModelConfig
from tpo_jax.models.pictures import Pictures
from tpo_jax.parallel.attention import prefix_multiple
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.parallel.sharding import ROWS, to_global
from tpo_jax.video import sampling

_CHECKPOINT = define_path("checkpoint", None, "Model directory.", required=True)
_PAIRS = define_path(
    "pairs", None, "List of pairs: .jsonl, .json, .csv, .yaml or .yml.", required=True
)
_VIDEOS = define_path("videos", None, "Folder the pairs' videos and images lie in.", required=True)
_OUTPUT = define_path("output", None, "JSON Lines file to write.", required=True)
_NUM_FRAMES = flags.DEFINE_integer("num_frames", 32, "Frames sampled per video.", lower_bound=1)
_SAMPLING = flags.DEFINE_enum("sampling", "uniform", sampling.RULES, "Which frames are sampled.")
_TIME = flags.DEFINE_enum(
    "time_instruction",
    None,
    TIME_INSTRUCTIONS,
    "Sentence on the frames' times: none, directly behind the video, or on the next line. Default: "
    "what the checkpoint asks for.",
)
_STYLE = flags.DEFINE_enum(
    "prompt_style",
    "inference",
    STYLES,
    "Prompts and labels: of the original inference code, or those of the original DPO trainer.",
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 8, "Pairs at a time, rounded up to a multiple of the devices.", lower_bound=1
)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute dtype.")

# Answers are rounded up to multiples of it, so that few shapes are compiled; the head is applied to
# as many positions at a time.
_RESPONSE_MULTIPLE = 16


@functools.partial(jax.jit, static_argnames="config")
def _sums(config: ModelConfig, params: dict, batch: Batch) -> jax.Array:
    """float32 `[B, 2]`: summed log-probabilities of the answers."""
    return (
        families.bind(config, params)
        .token_logps(batch, chunk=_RESPONSE_MULTIPLE)
        .sum(axis=(1, 3), dtype=np.float32)
    )


class Loaded(NamedTuple):
    """One pair, ready for a batch."""

    texts: Row
    visual: np.ndarray | Pictures  # frames uint8 [n, S, S, 3], or images


def read_row(
    pair: Pair, processor: Processor, videos: str | Path, num_frames: int, rule: str = "uniform"
) -> Loaded:
    """Return one pair as a row of a batch, `Q` = 1.

    Raises:
        InputError: the video, an image or the texts; the message begins with the place of the pair.
    """
    root, answers = Path(videos), pair.answers
    try:
        if not pair.video:
            pictures = processor.pictures([root / image for image in pair.images])
            return Loaded(processor.scored(pair.question, answers, pictures), pictures)
        clip = processor.video(root / pair.video, num_frames, rule)
        return Loaded(processor.scored(pair.question, answers, clip), clip.frames)
    except InputError as error:
        raise InputError(f"{pair.where}: {error}") from error


def stack(
    config: ModelConfig, rows: list[Loaded], size: int, num_frames: int, mesh: jax.sharding.Mesh
) -> Batch:
    """Collate `size` rows, texts padded to one length; rows beyond those given are empty.

    Args:
        config: of the model.
        rows: all of videos, or none.
        size: B.
        num_frames: F of videos.
        mesh: that it is for.
    """
    P = max(row.texts.prefix_ids.size for row in rows)
    R = max(row.texts.input_ids.shape[-1] for row in rows)
    visuals = [row.visual for row in rows]
    frames, images = visual_sizes(visuals)
    shape = BatchShape(
        rows=size,
        prefix=round_up(P, prefix_multiple(mesh)),
        questions=1,
        answers=2,
        response=round_up(R, _RESPONSE_MULTIPLE),
        frames=frames if images else num_frames,
        frame_shape=config.frame_shape,
        images=images,
        prefix_labels=rows[0].texts.target_at is not None,
    )
    return collate(config, [row.texts for row in rows], visuals, shape)


def score(
    config: ModelConfig,
    params: dict,
    pairs: list[Pair],
    read,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    num_frames: int,
) -> Iterator[dict]:
    """The result of every pair, in order; the next videos are read while the device computes.

    Args:
        config: of the model.
        params: in the compute dtype, laid out over `mesh`.
        pairs: to be scored, all on videos or none.
        read: a pair to its row, as `read_row`.
        mesh: rows of a batch are split over it.
        batch_size: pairs at a time, rounded up to what the mesh asks for.
        num_frames: of a video; one that has fewer is filled up with empty frames.
    """
    parts = int(np.prod([mesh.shape[axis] for axis in ROWS]))
    size = -(-batch_size // parts) * parts
    running: list[tuple] = []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(pairs), size):
            rows = list(pool.map(read, pairs[start : start + size]))
            with jax.set_mesh(mesh):
                batch = to_global(stack(config, rows, size, num_frames, mesh), mesh)
                sums = _sums(config, params, batch)
            counts = [row.texts.target_mask.sum(axis=(0, 2)) for row in rows]
            running.append((pairs[start : start + size], sums, counts))
            if len(running) > 1:
                yield from _results(*running.pop(0))
        for part in running:
            yield from _results(*part)


def _results(pairs, sums, counts) -> Iterator[dict]:
    for pair, values, tokens in zip(pairs, np.asarray(sums).tolist(), counts, strict=False):
        yield {
            "id": pair.id,
            "chosen_logp": values[0],
            "rejected_logp": values[1],
            "chosen_tokens": int(tokens[0]),
            "rejected_tokens": int(tokens[1]),
        }


def main() -> None:
    """Scores the list and prints where to."""
    output = output_file(_OUTPUT.value)
    pairs, rejections = read_pairs(_PAIRS.value, stills=True)
    rejections += [
        Rejection(pair.where, "is one answer on two videos; score takes two answers on one", None)
        for pair in pairs
        if pair.rejected_video
    ]
    if rejections:
        more = f" (and {len(rejections) - 1} more)" if len(rejections) > 1 else ""
        raise InputError(f"{rejections[0].where}: {rejections[0].reason}{more}")
    config = load_config(_CHECKPOINT.value)
    tokenizer = load_tokenizer(_CHECKPOINT.value, config)
    read = functools.partial(
        read_row,
        processor=Processor(config, tokenizer, _TIME.value, _STYLE.value),
        videos=_VIDEOS.value,
        num_frames=_NUM_FRAMES.value,
        rule=_SAMPLING.value,
    )
    read(pairs[0])  # what is wrong with all pairs shows before the weights are read
    mesh = make_mesh({"data": 1, "fsdp": -1, "tensor": 1, "context": 1})
    loaded = load_model(_CHECKPOINT.value, mesh=mesh, dtype=_DTYPE.value)
    with (
        jax.default_matmul_precision("highest" if _DTYPE.value == "float32" else "default"),
        replacing(output) as file,
    ):
        # A batch is of videos or has none.
        results = {}
        for video in (True, False):
            part = [pair for pair in pairs if bool(pair.video) == video]
            sizes = mesh, _BATCH_SIZE.value, _NUM_FRAMES.value
            for result in score(config, loaded.params, part, read, *sizes):
                results[result["id"]] = result
                if len(results) % 100 == 0:
                    logging.info("%d of %d pairs", len(results), len(pairs))
        file.writelines(json.dumps(results[pair.id]) + "\n" for pair in pairs)
    print(f"{_OUTPUT.value}: {len(pairs)} pairs")


if __name__ == "__main__":
    run_command(main)
